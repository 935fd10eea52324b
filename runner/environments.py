"""Environments with another ExecuTorch: the runtime of that release in a child process, beside this environment's torch and numpy.

An environment is a virtual one with the release's wheel and nothing else; links to what is installed here, but for executorch, stand behind it. It lies
in the user's cache and is made once: some 20 MB to fetch, 130 MB on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from verifier.core.errors import RunnerError, UsageError
from verifier.core.python import cache_folder, child_environment
from verifier.core.records import JsonObject
from verifier.core.system import machine
from verifier.runner.process import run_python
from verifier.runner.protocol import Bundle, Result

_TAIL = 1500
_ANOTHER = "give the python of an environment that has executorch"
ANSWER_S = 300.0
"""Longest time that a Python may take to import the runtime."""
_VERSION = re.compile(r"\d+(\.\d+)*([a-z]+\d*)?")
ASKED = """
import importlib.metadata as m, json
from packaging.requirements import Requirement
asked = [Requirement(line) for line in m.requires("executorch") or ()]
unmet = []
for one in asked:
    if one.name in ("torch", "numpy") and (one.marker is None or one.marker.evaluate()):
        has = m.version(one.name)
        if not one.specifier.contains(has, prereleases=True):
            unmet.append(f"{one.name}{one.specifier}, {has} is installed")
print(json.dumps({"unmet": unmet, "executorch": m.version("executorch"), "torch": m.version("torch")}))
"""
"""What a release asks for and this environment has not. `packaging` comes with executorch."""
TRIED = """
import sys
from verifier.runner.child import load_libraries
try:
    load_libraries()
except Exception as error:
    sys.exit(" ".join(str(error.__cause__ or error).split()))
"""


@dataclass(frozen=True)
class EnvironmentRunner:
    """One process of another environment's Python per bundle. `version` is executorch's there, with the path of a Python of the user's own."""

    version: str
    python: Path

    @property
    def name(self) -> str:
        """`executorch 1.4.1`."""
        return f"executorch {self.version}"

    @property
    def isa(self) -> str:
        """That of this machine."""
        return machine()

    @property
    def at_once(self) -> int:
        """One."""
        return 1

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `exchange` for what is an outcome and what an error."""
        return run_python([str(self.python), "-P", "-m", "verifier.runner.child"], bundle, timeout_s=timeout_s)

    def close(self) -> None:
        """Nothing is left behind."""


def environment_runner(word: str) -> EnvironmentRunner:
    """The runtime of a release, `1.4.1`, or of the Python of an environment of the user's own, `/path/to/python`.

    Raises `UsageError` for a word that is neither, `RunnerError` for a release that cannot be installed or cannot run here, with the reason.
    """
    if "/" in word:
        python = Path(word).expanduser().absolute()
        if not python.is_file():
            raise UsageError("there is no such Python", got=word, fix=_ANOTHER)
    elif _VERSION.fullmatch(word):
        python = _made(word)
    else:
        raise UsageError("this is no release of executorch", got=word, expected="1.5.1, or the path of a Python")
    facts = _asked(word, python)
    if facts["unmet"]:
        raise RunnerError(
            f"executorch {facts['executorch']} asks for {' and '.join(facts['unmet'])}",
            fix="give the path of a Python that has them, in place of the version",
        )
    _said(
        python, TRIED, f"the runtime of executorch {facts['executorch']} cannot be loaded beside torch {facts['torch']}"
    )
    label = facts["executorch"] if word == facts["executorch"] else f"{facts['executorch']} ({word})"
    return EnvironmentRunner(label, python)


def _made(version: str) -> Path:
    """The Python of a release's environment, made if it is not there; half an environment is never left under its name."""
    beside = f"{_here()} {metadata.version('torch')} {metadata.version('numpy')}"
    digest = hashlib.sha256(beside.encode()).hexdigest()[:8]
    name = f"executorch-{version}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    folder = cache_folder() / "runtimes" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if ready.is_file() and python.exists():
            return python
        venv.create(folder, clear=True, with_pip=False, symlinks=True)
        words = [sys.executable, "-P", "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        words += ["--disable-pip-version-check", "--only-binary=:all:", f"executorch=={version}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-_TAIL:]]
            raise RunnerError(
                f"executorch {version} cannot be installed for Python {sys.version_info.major}.{sys.version_info.minor} on {machine()}",
                got="; ".join(errors)[:_TAIL],
                fix="give a release that pip finds, or the path of a Python that has it",
            )
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        _link(folder / "beside")
        (site / "beside.pth").write_text(f"{folder / 'beside'}\n")
        ready.touch()
    return python


def _link(folder: Path) -> None:
    """What is installed here, but for executorch: it is a namespace, and two of its releases on one path would be mixed."""
    folder.mkdir()
    for place in _here():
        for entry in place.iterdir():
            if entry.suffix != ".pth" and not entry.name.startswith(("executorch", "__editable__", "__pycache__")):
                link = folder / entry.name
                if not link.exists():
                    link.symlink_to(entry)


def _here() -> tuple[Path, ...]:
    """Where packages are installed here."""
    return tuple(Path(path) for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))


def _asked(word: str, python: Path) -> JsonObject:
    """Versions in an environment, and what its executorch asks for in vain. Raises `RunnerError` for what is no Python with executorch."""
    problem = f"{word} is no Python with executorch"
    try:
        facts: JsonObject = json.loads(_said(python, ASKED, problem))
    except ValueError as error:
        raise RunnerError(problem, got="no answer in JSON", where=python, fix=_ANOTHER) from error
    return facts


def _said(python: Path, code: str, problem: str) -> str:
    """What a Python prints. Raises `RunnerError` with the last line of its complaint."""
    words, environment = [str(python), "-P", "-c", code], os.environ | child_environment()
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=ANSWER_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunnerError(problem, got=error, where=python, fix=_ANOTHER) from error
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RunnerError(problem, got=complaint[-1], where=python)
    return done.stdout
