"""`pytest --pte llava.pte`: every check and case as a test, over the same core as the command.

The run happens once per session. Under xdist the first worker to need it runs it, under a file lock, and the others
read its report.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from verifier.errors import VerifierError

FAMILIES = (
    "structure",
    "mapping",
    "preprocess",
    "splice",
    "weights",
    "layers",
    "kvcache",
    "threads",
    "embedding",
    "vision",
    "logits",
    "greedy",
    "budget",
    "device",
)
"""Of `verifier.checks.registry`, which is not imported here: every pytest run would pay for it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options under their own heading in `--help`."""
    group = parser.getgroup("verifier", "release gate for LLaVA on ExecuTorch")
    group.addoption("--pte", type=Path, metavar="PTE", help="verify this program")
    group.addoption("--pte-model", metavar="DIR", help="its checkpoint (default: the embedded llava_tiny)")
    group.addoption(
        "--pte-target",
        default="local",
        metavar="T",
        help="where to run it: local, native, qemu[:CPU], ssh:[user@]host or adb[:serial]",
    )
    group.addoption("--pte-checks", default="", metavar="GLOB,...", help="only these checks")
    group.addoption("--pte-images", default="", metavar="GLOB,...", help="only these golden images")
    group.addoption(
        "--pte-report",
        type=Path,
        metavar="DIR",
        help="also write report.json, report.html, junit.xml and summary.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and, with `--pte`, the collector of gate tests."""
    for family in FAMILIES:
        config.addinivalue_line("markers", f"pte_{family}: checks {family}.* of the release gate")
    if config.getoption("--pte") is not None:
        config.pluginmanager.register(_Gate(config), "verifier-gate")


class GateError(Exception):
    """A check that failed or could not be made; its text is all that a reader needs."""


class _Gate:
    """Collects the planned cases and answers them from one report."""

    def __init__(self, config: pytest.Config) -> None:
        from verifier.opening import Request, split_globs

        self.report_folder: Path | None = config.getoption("--pte-report")
        patterns, images = (split_globs(str(config.getoption(name))) for name in ("--pte-checks", "--pte-images"))
        self.request = Request(
            Path(config.getoption("--pte")),
            config.getoption("--pte-model"),
            str(config.getoption("--pte-target")),
            patterns,
            reproduction=self.report_folder and self.report_folder / "reproduction",
            images=images,
        )
        worker = getattr(config, "workerinput", {})
        self.run_id = str(worker.get("testrunuid", os.getpid()))
        self.planned: list[tuple[str, str]] = []
        self._report: dict[tuple[str, str], dict[str, Any]] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Refuse what cannot be verified before anything is collected."""
        from verifier.opening import open_request, planned_cases

        try:
            opened = open_request(self.request)
            with closing(opened.runner):
                self.planned = planned_cases(opened)
        except VerifierError as error:
            raise pytest.UsageError(f"not verified: {error}") from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """With `--pte` the gate is what is tested: its cases take the place of the tests of the folder."""
        path = session.path / self.request.pte.name
        collector = GateFile.from_parent(session, path=path, nodeid=self.request.pte.name)
        items[:] = [GateItem.make(collector, check, case, self) for check, case in self.planned]

    def results(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Results by (check, case), from this session's one run."""
        if self._report is None:
            cache = Path(tempfile.gettempdir()) / f"verifier-{os.getuid()}-{self.run_id}.json"
            with FileLock(f"{cache}.lock"):
                if not cache.is_file():
                    self._run(cache)
                text = json.loads(cache.read_text())
            self._report = {(c["id"], c["case"]): c for c in text["checks"]}
        return self._report

    def _run(self, cache: Path) -> None:
        from verifier.pipeline import verify
        from verifier.report.as_json import report, write_json
        from verifier.report.folder import write_folder

        data = report(verify(self.request))
        write_json(data, cache)
        if self.report_folder is not None:
            write_folder(data, self.report_folder)

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The controller removes what the workers shared."""
        if hasattr(session.config, "workerinput"):
            return
        pattern = f"verifier-{os.getuid()}-{self._shared_id(session)}.json*"
        for path in Path(tempfile.gettempdir()).glob(pattern):
            path.unlink(missing_ok=True)

    def _shared_id(self, session: pytest.Session) -> str:
        distributed = session.config.pluginmanager.getplugin("dsession")
        manager = getattr(distributed, "nodemanager", None)
        return str(getattr(manager, "testrunuid", self.run_id))


class GateFile(pytest.File):
    """Stands for the program under test in node ids: `llava.pte::logits.channels[program]`."""

    def collect(self) -> list[pytest.Item]:
        """Items are made by the gate."""
        return []


class GateItem(pytest.Item):
    """One check on one case."""

    gate: _Gate
    check: str
    case: str

    @classmethod
    def make(cls, parent: GateFile, check: str, case: str, gate: _Gate) -> GateItem:
        """An item named `check[case]`, marked with its family."""
        item: GateItem = cls.from_parent(parent, name=f"{check}[{case}]")
        item.gate, item.check, item.case = gate, check, case
        item.add_marker(f"pte_{check.partition('.')[0]}")
        return item

    def runtest(self) -> None:
        """Fail or skip as the check did."""
        try:
            result = self.gate.results().get((self.check, self.case))
        except VerifierError as error:
            raise GateError(f"not verified: {error}") from error
        if result is None:
            raise GateError(f"{self.check} gave no result for {self.case}")
        if result["verdict"] == "skipped":
            pytest.skip(result["message"])
        if result["verdict"] != "pass":
            raise GateError(
                f"{result['verdict']}: {result['message']}\n  measured {result['measured']}\n  allowed {result['allowed']}\n  where {result['where']}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone: a traceback of the gate says nothing about the artifact."""
        if isinstance(excinfo.value, GateError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the item is shown."""
        return self.path, None, f"{self.check}[{self.case}]"
