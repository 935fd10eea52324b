"""`pytest --pte llava.pte`: every check and case as a test, over the same core as the command.

With `--pte` the gate is what is tested, whatever else lies in the folder: no test file and no conftest.py of it is imported. Each pair of
file and target is verified once per session, before the first test and outside its clock, in a process of its own; tests only tell
what came of it. Under xdist the first worker that is free verifies a pair and the others wait for it; several pairs run side by side.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import ConftestImportFailure

from verifier.core.versions import warning
from verifier.plugin.judge import Judge, Question, Refused


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options under their own heading in `--help`, and settings for an ini file; an option goes before its setting."""
    group = parser.getgroup("verifier", "release gate for LLaVA on ExecuTorch")
    group.addoption("--pte", action="append", metavar="PTE", help="verify this program; several may be given")
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
    group.addoption(
        "--pte-budget",
        metavar="NAME=VALUE,...",
        help="what quantization may cost, in place of the default (see test_pte)",
    )
    group.addoption(
        "--pte-app",
        metavar="NAME,...",
        help="also judge the picture paths of these apps: cpp, android, ios, hf, original",
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
    parser.addini("pte_budget", "default of --pte-budget")
    parser.addini("pte_app", "default of --pte-app")
    parser.addini("pte_report", "default of --pte-report, relative to the ini file")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """With `--pte` no conftest.py is imported, unless an option is given that nobody else knows; of those only the options are left then."""
    known = early_config.known_args_namespace
    if not known.pte:
        return (yield)
    known.noconftest = known.noconftest or not _unknown_options(early_config, parser, args)
    try:
        return (yield)
    except ConftestImportFailure:
        if _unknown_options(early_config, parser, args):
            raise  # the option may be one of this file
        return None
    finally:
        manager = early_config.pluginmanager
        for plugin in manager.get_plugins():
            if Path(getattr(plugin, "__file__", None) or "").name == "conftest.py":
                manager.unregister(plugin)


def _unknown_options(config: pytest.Config, parser: pytest.Parser, args: list[str]) -> list[str]:
    _, unknown = parser.parse_known_and_unknown_args(args, copy.copy(config.option))
    return [word for word in unknown if word.startswith("-")]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and, with `--pte`, the collector of gate tests."""
    config.addinivalue_line(
        "markers", "pte_FAMILY: with --pte, the checks FAMILY.* of the release gate, such as pte_weights"
    )
    if config.getoption("--pte"):
        config.pluginmanager.register(_Gate(config), "verifier-gate")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """With `--pte`: which versions of other packages were not tried."""
    said = warning() if config.getoption("--pte") else ""
    return [f"warning: {said}"] if said else []


class GateError(Exception):
    """A check that failed or could not be made; its text is all that a reader needs."""


NOT_VERIFIED = frozenset({"not verified", "error"})
"""How the text of a test begins that says nothing about the artifact."""


def _setting(config: pytest.Config, name: str) -> str:
    given = config.getoption(f"--pte-{name}")
    return str(given if given is not None else config.getini(f"pte_{name}") or "")


def _beside_ini(config: pytest.Config, word: str) -> str:
    """A relative path of an ini file is meant from there; the id of a model on the hub stays what it is."""
    place = (config.rootpath / word).resolve()
    return str(place) if word and place.exists() else word


@dataclass
class _Pair:
    """One file on one target: its name in node ids, how else a command line may spell it, and the (check, case) that are due."""

    name: str
    spellings: tuple[str, ...]
    planned: list[tuple[str, str]] = field(default_factory=list)

    def named(self, argument: str) -> list[tuple[str, str]] | None:
        """What an argument of the command line chooses of this pair: all of it, a check, or one case; None if it is about something else."""
        for spelling in self.spellings:
            if argument == spelling:
                return self.planned
            if argument.startswith(f"{spelling}::"):
                wanted = argument.removeprefix(f"{spelling}::")
                exact = [each for each in self.planned if _item_name(*each) == wanted]
                return exact or [each for each in self.planned if each[0] == wanted]
        return None


def _item_name(check: str, case: str) -> str:
    return f"{check}[{case}]"


def _make_pairs(config: pytest.Config) -> tuple[list[_Pair], list[Question]]:
    """All pairs of file and target, and what is asked about each."""
    model = config.getoption("--pte-model") or _beside_ini(config, str(config.getini("pte_model") or "")) or None
    targets = config.getoption("--pte-target") or config.getini("pte_target") or ["local"]
    checks, images = _setting(config, "checks"), str(config.getoption("--pte-images") or "")
    report = config.getoption("--pte-report")
    if report is None and config.getini("pte_report"):
        report = config.rootpath / str(config.getini("pte_report"))
    programs = [Path(given) for given in config.getoption("--pte")]
    tokenizer, budget, apps = config.getoption("--pte-tokenizer"), _setting(config, "budget"), _setting(config, "app")
    shipped = str(tokenizer.absolute()) if tokenizer else None
    several = len(programs) * len(targets) > 1
    pairs: list[_Pair] = []
    questions: list[Question] = []
    for pte, name in zip(programs, _names(programs), strict=True):
        for target in targets:
            full = f"{name}@{target}" if len(targets) > 1 else name
            pairs.append(_Pair(full, (full, name, str(pte), str(pte.absolute()))))
            own = report and (report / full.replace("/", "_").replace(":", "_") if several else report)
            kept = str(own.absolute()) if own else None
            asked = {"model": model, "target": target, "checks": checks, "images": images, "report": kept}
            asked |= {"tokenizer": shipped, "budget": budget, "apps": apps}
            questions.append({"pte": str(pte.absolute())} | asked)
    return pairs, questions


def _names(programs: list[Path]) -> list[str]:
    """File names for node ids, with the folder in front where two files have the same name."""
    counts = Counter(path.name for path in programs)
    return [path.name if counts[path.name] == 1 else f"{path.resolve().parent.name}/{path.name}" for path in programs]


class _Gate:
    """Collects the planned cases of all pairs, has them verified before the first test, and answers each test.

    Under xdist the controller plans and tells its workers; a worker has `workerinput`.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.pairs, questions = _make_pairs(config)
        told = getattr(config, "workerinput", {})
        folder = told.get("verifier_folder")
        if folder is None:
            folder = tempfile.mkdtemp(prefix="verifier-")
            config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.judge = Judge(Path(folder), questions, str(told.get("workerid", "main")))
        config.add_cleanup(self.judge.close)
        self._told: list[list[tuple[str, str]]] | None = told.get("verifier_planned")
        self._chosen: list[tuple[int, list[tuple[str, str]]]] = []
        self._failures: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Refuse what cannot be verified before anything is collected, and before workers start."""
        try:
            planned = self.judge.plan() if self._told is None else self._told
        except Refused as error:
            raise pytest.UsageError(f"not verified: {error}") from error
        for pair, cases in zip(self.pairs, planned, strict=True):
            pair.planned = [(check, case) for check, case in cases]
        for family in dict.fromkeys(check.partition(".")[0] for pair in self.pairs for check, _ in pair.planned):
            session.config.addinivalue_line("markers", f"pte_{family}: checks {family}.* of the release gate")
        self._chosen = self._named(session.config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of xdist the plan, and where results are shared."""
        self.judge.close()  # its workers verify
        node.workerinput["verifier_folder"] = str(self.judge.folder)
        node.workerinput["verifier_planned"] = [pair.planned for pair in self.pairs]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> Generator[None, object, object]:
        """Nothing of the folder is collected."""
        given, session.config.args = session.config.args, []
        try:
            return (yield)
        finally:
            session.config.args = given

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """With `--pte` the gate is what is tested: its cases take the place of the tests of the folder."""
        items[:] = []
        for number, cases in self._chosen:
            file = GateFile.of(session, self, number, cases)
            own = list(file.collect())
            session.ihook.pytest_collectreport(report=pytest.CollectReport(file.nodeid, "passed", None, [*own]))
            items += own

    def _named(self, config: pytest.Config) -> list[tuple[int, list[tuple[str, str]]]]:
        """By pair, the cases that the command line names; all if it names none. Files and folders of tests choose nothing here."""
        named: dict[int, list[tuple[str, str]]] = {}
        for argument in config.args if config.args_source is pytest.Config.ArgsSource.ARGS else ():
            chosen = {number: cases for number, pair in enumerate(self.pairs) if (cases := pair.named(argument))}
            place = config.invocation_params.dir / argument
            if not chosen and ("::" in argument or not (place.exists() or config.option.pyargs)):
                raise pytest.UsageError(
                    f"not found: {argument}\n(no check and no case of {', '.join(p.name for p in self.pairs)})"
                )
            for number, cases in chosen.items():
                named.setdefault(number, []).extend(case for case in cases if case not in named.get(number, ()))
        return sorted(named.items()) or [(number, pair.planned) for number, pair in enumerate(self.pairs)]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Verify before the first test. What was deselected need not be made: a run for some checks alone gathers evidence for those."""
        chosen: dict[int, set[str]] = {}
        for item in session.items:
            if isinstance(item, GateItem):
                chosen.setdefault(item.number, set()).add(item.check)
        planned = {number: {check for check, _ in self.pairs[number].planned} for number in chosen}
        if not (session.config.option.collectonly or session.config.option.setuponly):
            self.judge.settle({n: None if checks == planned[n] else sorted(checks) for n, checks in chosen.items()})
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what kinds of failures there are."""
        if report.failed:
            said = str(report.longrepr)
            self._failures.add(
                "not verified" if said.startswith("worker '") else said.partition(":")[0]
            )  # xdist's, of one that crashed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Exit status 1 says that a check failed. Where nothing failed but something could not be verified, it is 2, as the command's."""
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and self._failures and self._failures <= NOT_VERIFIED:
            session.exitstatus = 2


class GateFile(pytest.File):
    """Stands for the program under test in node ids: `llava.pte::logits.channels[program]`."""

    gate: _Gate
    number: int
    cases: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, session: pytest.Session, gate: _Gate, number: int, cases: Sequence[tuple[str, str]]) -> GateFile:
        """The file of a pair, with some of its cases."""
        path = Path(gate.judge.requests[number]["pte"])  # --new-first looks at its time
        file: GateFile = cls.from_parent(session, path=path, nodeid=gate.pairs[number].name)
        file.gate, file.number, file.cases = gate, number, cases
        return file

    def collect(self) -> list[pytest.Item]:
        """An item for each case."""
        return [GateItem.make(self, check, case) for check, case in self.cases]


class GateItem(pytest.Item):
    """One check on one case."""

    gate: _Gate
    number: int
    check: str
    case: str

    @classmethod
    def make(cls, parent: GateFile, check: str, case: str) -> GateItem:
        """An item named `check[case]`, marked with its family, and grouped with all others of its file and target."""
        item: GateItem = cls.from_parent(parent, name=_item_name(check, case))
        item.gate, item.number, item.check, item.case = parent.gate, parent.number, check, case
        item.add_marker(f"pte_{check.partition('.')[0]}")
        if len(parent.gate.pairs) > 1:
            item.add_marker(pytest.mark.xdist_group(parent.nodeid))
        return item

    def runtest(self) -> None:
        """Fail or skip as the check did."""
        try:
            result = self.gate.judge.result(self.number, self.check, self.case)
        except Refused as error:
            raise GateError(f"not verified: {error}") from error
        if result is None:
            raise GateError(f"not verified: {self.check} gave no result for {self.case}")
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
        """Where the item is shown, and its heading, which is no end of the node id: pytest would show `::` for the dot in it."""
        return self.session.path / self.nodeid.partition("::")[0], None, f"{self.check} [{self.case}]"
