"""Our processes and the modules, options and settings of the folder and the shell that they are started from."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from verifier.checks.reference import reference
from verifier.core import python
from verifier.core.python import with_room
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle

OF_PYTHON = ("argparse", "json", "logging", "queue", "random", "tempfile", "traceback")
SHADOWS = (*OF_PYTHON, "conftest", "golden", "numpy", "report", "runner", "tests", "torch", "utils")


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder holds files with the names of many modules, which end Python when they are imported."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process of ours, found by `PYTHONPATH` alone."""
    given = os.environ | {"PYTHONPATH": python.ROOT} | environment
    return subprocess.run([sys.executable, *words], env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [["-m"], ["-OO", "-W", "error", "-m"], ["-OOm"], ["-Bm"]])
@pytest.mark.parametrize("path", [python.ROOT, f"{python.ROOT}:", f"{python.ROOT}:."])
def test_command_imports_nothing_of_the_working_folder(shadowed: Path, options: list[str], path: str) -> None:
    """Whatever Python's options, and with the folder on `PYTHONPATH` too."""
    joined = (
        [*options[:-1], f"{options[-1]}verifier.test_pte"] if options[-1] == "-Bm" else [*options, "verifier.test_pte"]
    )
    done = run(*joined, "--help", PYTHONPATH=path)
    assert (done.returncode, "usage: python -m verifier.test_pte" in done.stdout) == (0, True), done.stderr


def test_command_has_docstrings_and_asserts(shadowed: Path) -> None:
    """`-OO` would leave the reference of checks without a word; warnings are no errors; arguments and the console's encoding stay."""
    page = shadowed / "a page.md"
    done = run("-OO", "-Werror", "-m", "verifier.checks.reference", str(page), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert page.read_text() == reference()


@pytest.mark.parametrize("command", ["runner.llava_main", "runner", "runner.native.build", "runner.arm_python"])
def test_commands_of_a_clone_run_the_package(command: str) -> None:
    """By the names of the folders at the top level; no module of theirs is there twice."""
    words = [sys.executable, "-X", "importtime", "-m", command, "--help"]
    done = subprocess.run(words, cwd=python.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"usage: python -m verifier.{command} "), done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {name for name in imported if name.partition(".")[0] == "runner"} <= {"runner", "runner.native"}
    assert "verifier.runner" in imported


@pytest.mark.parametrize("options", [["-W", "error", "-m"], ["-OOm"]])
def test_other_programs_keep_their_path(tmp_path: Path, options: list[str]) -> None:
    """Importing the package changes nothing for whoever imports it, the folder of their own modules included."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import sys\nbefore = list(sys.path)\nimport verifier.core.errors\n")
    (tmp_path / "mine" / "__main__.py").write_text(
        "import sys, mine, other\nprint(sys.path == mine.before, *sys.argv[1:])\n"
    )
    (tmp_path / "other.py").write_text("")
    words = [sys.executable, *options, "mine", "-m"]
    given = os.environ | {"PYTHONPATH": python.ROOT}
    done = subprocess.run(words, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    assert done.stdout == "True -m\n", done.stderr


def test_child_runs_without_the_callers_settings(shadowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that loads a program: the folder's modules, `-OO` and warnings as errors do not reach it."""
    for name, value in {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONPATH": f".:{python.ROOT}:"}.items():
        monkeypatch.setenv(name, value)
    result = LocalRunner().run(Bundle(EMBEDDED_PTE, ()), timeout_s=300)
    assert (result.outcome, result.message) == ("ok", "")


def test_environment_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's path without the working folder, behind ours; what is installed is not put before the standard library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(tmp_path), "/else/where"]))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    given = python.child_environment()
    assert given["PYTHONPATH"] == f"{python.ROOT}{os.pathsep}/else/where"
    assert (given["PYTHONIOENCODING"], given["PYTHONSAFEPATH"]) == ("", "1")
    monkeypatch.setattr(python, "_installed", lambda: (python.ROOT,))
    assert python.child_environment()["PYTHONPATH"] == "/else/where"
    monkeypatch.chdir(python.ROOT)  # in a clone the working folder is where `verifier` comes from
    monkeypatch.setenv("PYTHONPATH", ".")
    assert python.child_environment()["PYTHONPATH"] == "."


CALLS, DEEPEST = 3000, 120


def _faults_at(depth: int) -> int:
    """Pages that the system maps while a function is called many times, so deep in Python's stack."""
    if depth:
        return _faults_at(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        _nothing()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _nothing() -> None:
    return None


def _worst() -> int:
    return max(map(_faults_at, range(DEEPEST)))


def test_calls_cross_no_edge_of_the_stack() -> None:
    """Somewhere within 120 calls a plain loop meets the edge of a piece (CPython 3.11); with room ahead, none does."""
    assert with_room(_worst) < CALLS / 10
    if sys.version_info < (3, 12):
        assert _worst() >= CALLS


def test_room_changes_nothing_else() -> None:
    """Arguments, the result and an exception come through."""
    assert with_room(divmod, 7, 4) == (1, 3)
    assert with_room(sorted, [1, 2], reverse=True) == [2, 1]
    with pytest.raises(ZeroDivisionError):
        with_room(divmod, 1, 0)
