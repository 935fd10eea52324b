"""`pytest --pte` in other people's projects: their files, plugins and settings do not change what is verified, nor how often."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugin.scripted.scripted import CASES
from tests.support import EMBEDDED_PTE

ROOT = Path(__file__).resolve().parents[2]
CHECKS = 2 * len(CASES)
pytestmark = pytest.mark.xdist_group("guest")
PLUGINS = ("verifier.pytest_plugin", "xdist", "pytest_timeout", "pytest_randomly", "pytest_rerunfailures")
STRICT = "addopts = --strict-markers --strict-config -W error -p no:cacheprovider --import-mode=importlib\n"
HOSTILE = f"[pytest]\n{STRICT}testpaths = .\nfilterwarnings = error\nxfail_strict = true\npython_files = *.py\n"
IMPORTED = "from pathlib import Path\nPath('imported').touch()\n"


@dataclass
class Project:
    """A folder with tests of somebody else."""

    folder: Path
    script: str = ""
    plugins: tuple[str, ...] = PLUGINS

    def pytest(self, *words: str, python: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        """Run pytest there, with only the plugins that are named: others take seconds to import. What verifies is scripted."""
        path = os.pathsep.join([str(Path(__file__).with_name("scripted")), str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        own |= {"SCRIPTED": self.script, "SCRIPTED_LOG": str(self.folder / "log")}
        named = [word for plugin in (*self.plugins, "scripted") for word in ("-p", plugin)]
        command = [sys.executable, *python, "-m", "pytest", *named, "--pte=llava.pte", *words]
        environment = os.environ | own | environment
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def write(self, **files: str) -> None:
        """Put files there, named without `.py`."""
        for name, text in files.items():
            (self.folder / (name if "." in name else f"{name}.py")).write_text(text)

    @property
    def attempts(self) -> list[str]:
        """What was asked to be verified so far."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty one."""
    return Project(tmp_path)


def passed(done: subprocess.CompletedProcess[str], count: int = CHECKS) -> bool:
    """Whether so many tests passed, and no other."""
    return done.returncode == 0 and f" {count} passed" in f" {done.stdout.splitlines()[-1].strip('= ')}"


@pytest.mark.parametrize("words", [("-x",), ("--maxfail=1", "."), ("test_broken.py", "-n", "1")])
def test_files_of_the_folder_are_not_imported(project: Project, words: tuple[str, ...]) -> None:
    """A syntax error, a failing import, a conftest.py that ends Python, strict settings: the gate runs, and nothing of it was imported."""
    project.plugins = PLUGINS[:2]  # pytest-randomly imports numpy
    project.write(
        test_broken="def (", test_import=f"{IMPORTED}import nothing_of_that_name", numpy="1 / 0", torch="1 / 0"
    )
    project.write(
        conftest=f"{IMPORTED}raise SystemExit(0)", runner="1 / 0", golden="1 / 0", report="1 / 0", utils="1 / 0"
    )
    (project.folder / "pytest.ini").write_text(HOSTILE)
    done = project.pytest(*words)
    assert passed(done), done.stdout + done.stderr
    assert not (project.folder / "imported").exists()


def test_conftest_gives_its_options_and_nothing_else(project: Project) -> None:
    """An ini file that uses an option of conftest.py still works; hooks that drop and break other people's items are not called."""
    hooks = (
        "def pytest_collection_modifyitems(items): items.clear()\ndef pytest_runtest_setup(item): item.fixturenames\n"
    )
    project.write(conftest=f"def pytest_addoption(parser): parser.addoption('--ours')\n{hooks}")
    (project.folder / "pytest.ini").write_text("[pytest]\naddopts = --ours=1\n")
    done = project.pytest()
    assert passed(done), done.stdout + done.stderr
    project.write(conftest="1 / 0")
    done = project.pytest()
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (4, True)


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_work_is_outside_the_clock_of_tests(project: Project, method: str) -> None:
    """Verifying takes longer than any test may."""
    project.script = "slow"
    done = project.pytest("--timeout=1", f"--timeout-method={method}")
    assert passed(done), done.stdout + done.stderr
    assert len(project.attempts) == 1


def test_reruns_do_not_repeat_the_work(project: Project) -> None:
    """A failed check is rerun as a test, in random order, and is as wrong as before."""
    project.script = "fail"
    done = project.pytest("--reruns=2")
    assert done.returncode == 1
    assert f"{len(CASES)} failed, {len(CASES)} passed, {2 * len(CASES)} rerun" in done.stdout
    assert len(project.attempts) == 1


@pytest.mark.parametrize(
    ("script", "words", "reason"),
    [
        ("dies", (), "the process that verifies ended with status -6\nout of memory"),
        ("refused", ("--reruns=1",), "the target is gone\n  got: nothing"),
        ("dies", ("-n2",), "the process that verifies ended with status -6\nout of memory"),
        ("kills", ("-n2",), "the process that verified it did not finish: gw"),
    ],
)
def test_failed_attempt_is_remembered(project: Project, script: str, words: tuple[str, ...], reason: str) -> None:
    """Every test says why, also those of another worker, also when the worker itself was killed; nobody tries again. It is no failed check."""
    project.script = script
    done = project.pytest(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    crashed = done.stdout.count(
        "crashed while running 'llava.pte::"
    )  # xdist says it in place of a test that the worker already had
    told = done.stdout.partition("short test summary info")[0]  # a summary is longer where the variable CI is set
    assert told.count(f"not verified: {reason}") == CHECKS - (1 if crashed else 0)
    assert f"{CHECKS} failed" in done.stdout
    assert len(project.attempts) == 1


@pytest.mark.parametrize(
    ("mode", "pairs", "count"), [("load", 1, CHECKS), ("each", 1, 2 * CHECKS), ("loadgroup", 2, 2 * CHECKS)]
)
def test_workers_share_one_verification(project: Project, mode: str, pairs: int, count: int) -> None:
    """However xdist deals out the tests, each file is verified once."""
    second = ["--pte=second.pte"] if pairs == 2 else []
    done = project.pytest("-n2", f"--dist={mode}", *second)
    assert passed(done, count), done.stdout + done.stderr
    assert len(project.attempts) == pairs


@pytest.mark.parametrize("word", ["--collect-only", "--setup-plan"])
def test_listing_verifies_nothing(project: Project, word: str) -> None:
    """Cases are known without a run."""
    done = project.pytest(word, "-q")
    assert done.returncode == 0, done.stdout
    assert "llava.pte::weights.tensors[odd[1].png]" in done.stdout
    assert project.attempts == []


@pytest.mark.parametrize("case", ["odd[1].png", "a b/c::d,e", "x]y[z", "@gw0"])
def test_any_case_can_be_named(project: Project, case: str) -> None:
    """With brackets, blanks, slashes, colons, as pytest shows it, it is the one that runs; only its check is made."""
    one = f"llava.pte::weights.tensors[{case}]"
    done = project.pytest("-v", one)
    assert passed(done, 1), done.stdout + done.stderr
    assert f"{one} PASSED" in done.stdout
    assert project.attempts[0].endswith("['weights.tensors']")


def test_parts_can_be_named_and_left_out(project: Project) -> None:
    """A whole check, a folder's path in front of the name, words of `-k`, and `--deselect`."""
    assert passed(project.pytest("llava.pte::weights.tensors"), len(CASES))
    assert passed(project.pytest(f"{project.folder / 'llava.pte'}::weights.tensors[program]", "-n1"), 1)
    done = project.pytest("-k", "odd[1].png or c::d", "--deselect", "llava.pte::weights.tensors[odd[1].png]")
    assert "3 passed" in done.stdout


def test_options_of_pytest_and_its_cache(project: Project) -> None:
    """The newest first, the last failed, a report of pytest's own: also on workers."""
    project.write(**{"llava.pte": ""})
    project.script = "fail"
    assert project.pytest("--nf", "-n1", "--junitxml=junit.xml").returncode == 1
    assert 'name="weights.tensors[x]y[z]"' in (project.folder / "junit.xml").read_text()
    project.script = ""
    assert passed(project.pytest("--lf", "--ff", "--setup-show"), len(CASES))


@pytest.mark.parametrize("word", ["llava.pte::weights.nothing", "test_a.py::test_b", "no_such_folder"])
def test_what_is_not_there_is_a_usage_error(project: Project, word: str) -> None:
    """A misspelt name verifies nothing, rather than everything."""
    done = project.pytest(word)
    assert (done.returncode, f"not found: {word}" in done.stderr) == (4, True)
    assert project.attempts == []


def test_folder_and_file_may_have_any_name(tmp_path: Path) -> None:
    """Brackets, blanks and letters that the console cannot print."""
    folder = tmp_path / "out [1] ü"
    folder.mkdir()
    one = "mödel [2].pte::weights.tensors[ünï]"
    done = Project(folder).pytest(
        "--pte=mödel [2].pte", one, "llava.pte::weights.tensors[[]", "-v", PYTHONIOENCODING="ascii"
    )
    assert passed(done, 2), done.stdout + done.stderr


def test_any_environment_will_do(tmp_path: Path) -> None:
    """The gate itself, without asserts and docstrings, in ASCII, with no home, in a folder that nobody can write."""
    temporary = tmp_path / "with a blank"
    temporary.mkdir()
    words = [sys.executable, "-OO", "-m", "pytest", f"--pte={EMBEDDED_PTE}", "--pte-checks=structure.limits"]
    hostile = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)}
    hostile |= {"HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd="/proc", env=os.environ | hostile, capture_output=True, text=True, check=False)
    assert passed(done, 1), done.stdout + done.stderr
    assert not list(temporary.glob("verifier-*"))
