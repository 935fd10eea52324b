"""Every command that the documentation prints is accepted by the parser of that command, and every option that it names exists.

A command's own `main` builds its parser; it is stopped where the arguments have been parsed, so nothing runs.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from verifier.checks.registry import CHECKS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "changelog.d/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOREIGN_OPTIONS = {"--extra-index-url", "--strict", "--reruns"}
"""Named in the pages: of mypy, and of a plugin of pytest that need not be installed."""
_COMMAND = re.compile(
    r"(?:^|(?<=[\s'(]))(?:[\w./]*python[\d.]* (?:-P )?-m (?P<module>\S+)|^(?P<tool>pytest|make|llava_main)(?= ))"
)
_END = re.compile(r"\s(?:#|&&|\|\|?|>|;)(?:\s|$)|\s*│")


@dataclass(frozen=True)
class Command:
    """A command as a page prints it: `module` of `python -m`, or the name of a tool."""

    page: str
    line: int
    module: str
    words: tuple[str, ...]


def _fragments(text: str) -> Iterator[tuple[int, str]]:
    """Line number and code: the lines of fenced and of indented blocks, and what stands between backticks, over ends of lines too."""
    fenced, joined, prose = False, "", list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or re.match(r" {4,}(?:\S+=\S+ )?(?:python|pytest|make|llava_main)", line):
            joined += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield number, joined.strip()
                joined = ""
        elif line.strip():
            prose.append(line.strip())
            continue
        yield from ((number, span) for span in re.findall(r"`([^`]+)`", " ".join(prose)))
        prose = []


def _commands(page: Path) -> Iterator[Command]:
    for number, code in _fragments(page.read_text()):
        for found in _COMMAND.finditer(code):
            rest = code[found.end() :]
            if code[: found.start()].endswith("'"):  # sh '…' of another language
                rest = rest.partition("'")[0]
            end = _END.search(rest)
            words = shlex.split(rest[: end.start()] if end else rest)
            yield Command(str(page.relative_to(ROOT)), number, found["module"] or found["tool"], tuple(words))


PRINTED = [command for page in PAGES for command in _commands(page)]
OF_MODULES = [one for one in PRINTED if one.module not in ("pytest", "make", "llava_main", "venv", "pip")]


class _ParsedError(BaseException):
    """Ends a `main` where its arguments have been parsed."""


@cache
def _main(module: str) -> Callable[[], Any]:
    """The `main` behind `python -m MODULE`, without what turns its exceptions into exit statuses. It has a parser."""
    spec = find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations is not None:
        return _main(f"{module}.__main__")
    source = Path(str(spec.origin)).read_text()
    elsewhere = re.search(r"^ *from (\S+) import main$", source, re.MULTILINE)
    if elsewhere:
        return _main(elsewhere[1])
    assert "ArgumentParser(" in source, f"{module} has no parser: it would run"
    main: Callable[[], Any] = inspect.unwrap(importlib.import_module(module).main)
    return main


def _stopped(monkeypatch: pytest.MonkeyPatch, module: str, words: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of a module's `main` after it parsed the words. Raises `SystemExit` if it does not accept them."""
    seen: list[argparse.ArgumentParser] = []

    def stop_after(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
            seen.append(parser)
            parse(parser, *given)
            raise _ParsedError

        return parse_and_stop

    main = _main(module)
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises((_ParsedError, SystemExit)) as ended:
        main()
    monkeypatch.undo()
    if ended.type is SystemExit and words:  # without words it was asked for its parser alone
        raise ended.value
    return seen[0]


@pytest.mark.parametrize("command", OF_MODULES, ids=lambda one: f"{one.page}:{one.line}")
def test_module_commands(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that is named can be run; one with arguments accepts them."""
    if not command.words or command.module == "pytest":
        spec = find_spec(command.module)
        assert spec is not None
        assert spec.submodule_search_locations is None or find_spec(f"{command.module}.__main__") is not None
        return
    try:
        _stopped(monkeypatch, command.module, command.words)
    except SystemExit:
        pytest.fail(f"{shlex.join(command.words)}: {capsys.readouterr().err}")


def test_make_targets() -> None:
    """`make` knows what to do for every target that is printed."""
    targets = {word for one in PRINTED if one.module == "make" for word in one.words}
    assert {"verify", "test", "faults"} <= targets
    done = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pytest_commands(pytestconfig: pytest.Config) -> None:
    """pytest with our plugin and pytest-xdist accepts the options; markers of the gate exist."""
    markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    markers |= {f"pte_{check.id.partition('.')[0]}" for check in CHECKS}  # declared when a session begins
    printed = [one for one in PRINTED if one.module == "pytest" and one.words != ("--pte",)]
    assert len(printed) >= 5
    for one in printed:
        options = pytestconfig._parser.parse(list(one.words))  # pytest offers no public way to parse alone
        files = [word for word in one.words if word.startswith("tests/") and "NAME" not in word]
        assert all((ROOT / word).exists() for word in files), one
        named = set(re.findall(r"\w+", options.markexpr or "")) - {"not", "or", "and"}
        assert named <= markers, one


@cache
def _native_flags() -> frozenset[str]:
    """The flags of the C++ `llava_main`, from the table in its source."""
    source = (ROOT / "runner" / "native" / "src" / "main.cpp").read_text()
    return frozenset(re.findall(r'\{"(--\w+)",', source)) | {"--about", "--help"}


def test_native_commands() -> None:
    """The C++ `llava_main` knows the flags that are printed for it."""
    printed = [one for one in PRINTED if one.module == "llava_main" and one.words]
    assert printed
    for one in printed:
        flags = {word.partition("=")[0] for word in one.words if word.startswith("--")}
        assert flags <= _native_flags(), one


COMMANDS = (
    *(
        "verifier.test_pte",
        "verifier.judge",
        "verifier.skew",
        "verifier.session",
        "verifier.export_llava",
        "verifier.compare",
        "verifier.calibrate",
        "verifier.budgets",
        "verifier.golden",
    ),
    *("verifier.report", "verifier.image_util", "verifier.faults", "verifier.synth_checkpoint", "verifier.runner"),
    *(
        "verifier.runner.llava_main",
        "verifier.runner.native.build",
        "verifier.runner.native.phone",
        "verifier.runner.arm_python",
    ),
    *("tests.bench.reports", "tests.bench.gate", "golden.llava_tiny.make.golden", "golden.llava_tiny.make.evaluate"),
)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _options(each)


def test_named_options_exist(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that stands between backticks is one of our commands', of the plugin's or of `llava_main`."""
    known = {option for module in COMMANDS for option in _options(_stopped(monkeypatch, module, ()))}
    known |= {name for group in pytestconfig._parser._groups for option in group.options for name in option.names()}
    known |= _native_flags() | FOREIGN_OPTIONS
    for page in PAGES:
        for number, code in _fragments(page.read_text()):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", code):
                assert option in known, f"{page.relative_to(ROOT)}:{number}: {option} in {code}"


def test_versions() -> None:
    """The wheel and the tag that pages and workflows name are those of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = "".join(page.read_text() for page in [*PAGES, *(ROOT / ".github" / "workflows").glob("*.yml")])
    named = re.findall(r"llava_verifier-([\d.]+)-py3|OWNER/llava-verifier\S*@v([\d.]+)", text)
    assert {wheel or tag for wheel, tag in named} == {version}


def test_environment_variables_are_listed() -> None:
    """CONTRIBUTING.md has every variable that our code reads or sets, and none that nobody does."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Environment variables")[2]
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table))
    sources = [*(ROOT / "verifier").rglob("*.py"), *(ROOT / "runner").rglob("*.py"), ROOT / "tests" / "conftest.py"]
    text = "".join(path.read_text() for path in sources)
    read = set(re.findall(r'environ(?:\.get|\.setdefault)?[\[(]"(\w+)"', text)) | set(
        re.findall(r'"(PYTHON[A-Z0-9]+)"', text)
    )
    assert read <= listed
    others = (
        "Makefile",
        ".ci/run",
        "docs/targets.md",
        ".github/actions/verify-pte/action.yml",
        "tests/plugin/scripted/scripted.py",
        "tests/gate/test_foreign_built.py",
    )
    text += "".join((ROOT / name).read_text() for name in others)
    foreign = {"SSH_AUTH_SOCK", "HOME", "HF_HOME", "TMPDIR"}  # read by libraries
    assert {name for name in listed - foreign if name not in text} == set()


def test_changelog_fragments() -> None:
    """Each fragment has a type that towncrier is configured for, and text without a bullet of its own."""
    kinds = {
        each["directory"] for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
    }
    fragments = sorted((ROOT / "changelog.d").glob("+*"))
    assert fragments
    for path in fragments:
        found = re.fullmatch(r"\+[a-z0-9-]+\.([a-z]+)\.md", path.name)
        assert found is not None, path.name
        assert found[1] in kinds, path.name
        assert re.match(r"[^\s*-]", path.read_text()), path.name


def test_named_files_exist() -> None:
    """What a page names by its path from the root is there; a page that is generated or of history may name what is not."""
    for page in [*PAGES, ROOT / "mkdocs.yml"]:
        for name in re.findall(r"`((?:verifier|runner|tests|golden|docs|changelog\.d)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)}: {name}"
