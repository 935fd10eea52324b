"""`pytest --pte llava.pte`: every check and case as a test, over the same core as the command.

Each pair of file and target is verified once per session. Under xdist the first worker to need it runs it, under a file lock, and the
others read its report; `--dist loadgroup` gives each pair to one worker, so that pairs run side by side.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from verifier.errors import VerifierError

if TYPE_CHECKING:
    from verifier.opening import Request

FAMILIES = (
    "structure",
    "mapping",
    "preprocess",
    "splice",
    "tokenizer",
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
    """Options under their own heading in `--help`, and settings for an ini file; an option goes before its setting."""
    group = parser.getgroup("verifier", "release gate for LLaVA on ExecuTorch")
    group.addoption(
        "--pte", type=Path, action="append", metavar="PTE", help="verify this program; several may be given"
    )
    group.addoption("--pte-model", metavar="DIR", help="its checkpoint (default: the embedded llava_tiny)")
    group.addoption(
        "--pte-target",
        action="append",
        metavar="T",
        help="where to run it: local (default), native, qemu[:CPU], ssh:[user@]host or adb[:serial]; several may be given",
    )
    group.addoption("--pte-checks", metavar="GLOB,...", help="only these checks")
    group.addoption(
        "--pte-tokenizer", type=Path, metavar="FILE", help="the tokenizer that ships (default: all beside the program)"
    )
    group.addoption("--pte-images", metavar="GLOB,...", help="only these golden images")
    group.addoption(
        "--pte-report",
        type=Path,
        metavar="DIR",
        help="also write report.json, report.html, junit.xml and summary.md; one folder for each pair if there are several",
    )
    parser.addini("pte_model", "default of --pte-model, relative to the ini file if it is a folder there")
    parser.addini("pte_target", "default of --pte-target", type="args", default=[])
    parser.addini("pte_checks", "default of --pte-checks")
    parser.addini("pte_report", "default of --pte-report, relative to the ini file")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and, with `--pte`, the collector of gate tests."""
    for family in FAMILIES:
        config.addinivalue_line("markers", f"pte_{family}: checks {family}.* of the release gate")
    if config.getoption("--pte"):
        config.pluginmanager.register(_Gate(config), "verifier-gate")


class GateError(Exception):
    """A check that failed or could not be made; its text is all that a reader needs."""


def _setting(config: pytest.Config, name: str) -> str:
    given = config.getoption(f"--pte-{name}")
    return str(given if given is not None else config.getini(f"pte_{name}") or "")


def _beside_ini(config: pytest.Config, word: str) -> str:
    """A relative path of an ini file is meant from there; the id of a model on the hub stays what it is."""
    place = (config.rootpath / word).resolve()
    return str(place) if word and place.exists() else word


class _Pair:
    """One file on one target: what to verify, the cases that are due, and their results once there are any."""

    def __init__(self, request: Request, name: str, report_folder: Path | None) -> None:
        self.request, self.name, self.report_folder = request, name, report_folder
        self.planned: list[tuple[str, str]] = []
        self.report: dict[tuple[str, str], dict[str, Any]] | None = None

    def plan(self) -> None:
        """Refuse what cannot be verified, and list its cases."""
        from verifier.opening import open_request, planned_cases

        opened = open_request(self.request)
        with closing(opened.runner):
            self.planned = planned_cases(opened)

    def run(self, cache: Path) -> None:
        """Verify, and leave the report for all workers."""
        from verifier.pipeline import verify
        from verifier.report.as_json import report, write_json
        from verifier.report.folder import write_folder

        data = report(verify(self.request))
        write_json(data, cache)
        if self.report_folder is not None:
            write_folder(data, self.report_folder)


class _Gate:
    """Collects the planned cases of all pairs and answers them from one report each."""

    def __init__(self, config: pytest.Config) -> None:
        from verifier.opening import Request, split_globs

        checks, images = (
            split_globs(_setting(config, "checks")),
            split_globs(str(config.getoption("--pte-images") or "")),
        )
        model = config.getoption("--pte-model") or _beside_ini(config, str(config.getini("pte_model") or "")) or None
        targets = config.getoption("--pte-target") or config.getini("pte_target") or ["local"]
        folder = config.getoption("--pte-report")
        if folder is None and config.getini("pte_report"):
            folder = config.rootpath / str(config.getini("pte_report"))
        programs: list[Path] = config.getoption("--pte")
        self.pairs = []
        for pte, name in zip(programs, _names(programs), strict=True):
            for target in targets:
                full = f"{name}@{target}" if len(targets) > 1 else name
                own = folder and (
                    folder / full.replace("/", "_").replace(":", "_") if len(programs) * len(targets) > 1 else folder
                )
                request = Request(pte, model, target, checks, reproduction=own and own / "reproduction", images=images)
                request = replace(request, tokenizer=config.getoption("--pte-tokenizer"))
                self.pairs.append(_Pair(request, full, own))
        worker = getattr(config, "workerinput", {})
        self.run_id = str(worker.get("testrunuid", os.getpid()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Refuse what cannot be verified before anything is collected."""
        try:
            for pair in self.pairs:
                pair.plan()
        except VerifierError as error:
            raise pytest.UsageError(f"not verified: {error}") from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """With `--pte` the gate is what is tested: its cases take the place of the tests of the folder."""
        items[:] = []
        for pair in self.pairs:
            collector = GateFile.from_parent(session, path=session.path / pair.name, nodeid=pair.name)
            items += [GateItem.make(collector, check, case, self, pair) for check, case in pair.planned]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What was deselected need not be made: a run for some checks alone gathers evidence for those."""
        for pair in self.pairs:
            chosen = {item.check for item in session.items if isinstance(item, GateItem) and item.pair is pair}
            if chosen and chosen != {check for check, _ in pair.planned}:
                pair.request = replace(pair.request, checks=tuple(sorted(chosen)))

    def results(self, pair: _Pair) -> dict[tuple[str, str], dict[str, Any]]:
        """Results by (check, case), from this session's one run of the pair."""
        if pair.report is None:
            cache = Path(tempfile.gettempdir()) / f"verifier-{os.getuid()}-{self.run_id}-{self.pairs.index(pair)}.json"
            with FileLock(f"{cache}.lock"):
                if not cache.is_file():
                    pair.run(cache)
                text = json.loads(cache.read_text())
            pair.report = {(c["id"], c["case"]): c for c in text["checks"]}
        return pair.report

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The controller removes what the workers shared."""
        if hasattr(session.config, "workerinput"):
            return
        pattern = f"verifier-{os.getuid()}-{self._shared_id(session)}-*.json*"
        for path in Path(tempfile.gettempdir()).glob(pattern):
            path.unlink(missing_ok=True)

    def _shared_id(self, session: pytest.Session) -> str:
        distributed = session.config.pluginmanager.getplugin("dsession")
        manager = getattr(distributed, "nodemanager", None)
        return str(getattr(manager, "testrunuid", self.run_id))


def _names(programs: list[Path]) -> list[str]:
    """File names for node ids, with the folder in front where two files have the same name."""
    counts = Counter(path.name for path in programs)
    return [path.name if counts[path.name] == 1 else f"{path.resolve().parent.name}/{path.name}" for path in programs]


class GateFile(pytest.File):
    """Stands for the program under test in node ids: `llava.pte::logits.channels[program]`."""

    def collect(self) -> list[pytest.Item]:
        """Items are made by the gate."""
        return []


class GateItem(pytest.Item):
    """One check on one case."""

    gate: _Gate
    pair: _Pair
    check: str
    case: str

    @classmethod
    def make(cls, parent: GateFile, check: str, case: str, gate: _Gate, pair: _Pair) -> GateItem:
        """An item named `check[case]`, marked with its family, and grouped with all others of its file and target."""
        item: GateItem = cls.from_parent(parent, name=f"{check}[{case}]")
        item.gate, item.pair, item.check, item.case = gate, pair, check, case
        item.add_marker(f"pte_{check.partition('.')[0]}")
        if len(gate.pairs) > 1:
            item.add_marker(pytest.mark.xdist_group(pair.name))
        return item

    def runtest(self) -> None:
        """Fail or skip as the check did."""
        try:
            result = self.gate.results(self.pair).get((self.check, self.case))
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
