"""How our own Python processes start: with our packages and nobody else's modules, whatever the folder and the environment hold.

Only `os` and `sys` are imported, which every Python has loaded already: a file of the working folder may have the name of any other module.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # of `typing`, which is not imported either
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

NOT_VERIFIED, INTERRUPTED = 2, 130
"""Exit statuses of every command, besides 0 and 1 for verdicts."""

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # noqa: PTH120
"""Where `verifier` is imported from: the clone, or site-packages."""
_OF_THE_CALLER = (
    *("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONINSPECT", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"),
    *("PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE", "PYTHONDEBUG"),
)
"""Settings of the caller's tests, not of ours: asserts belong to the verdict, and a library's deprecation ends no verification. Python
takes an empty value for none."""


def child_command(module: str) -> list[str]:
    """The words that run a module of ours in a new process, without the working folder on its path."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """What to set in a child's environment: how Python runs is its default, and `verifier` is found where this process found it."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and not _is_shadow(entry)]
    own = [] if ROOT in _installed() else [ROOT]  # what is installed would come before the standard library
    unset = dict.fromkeys((name for name in _OF_THE_CALLER if name in os.environ), "")
    return unset | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONPATH": os.pathsep.join([*own, *given])}


def started_module() -> str:
    """The module of `python -m MODULE`, as long as Python is looking for it; options may stand in front of it in one word."""
    word = sys.orig_argv[-len(sys.argv)]
    return word.partition("m")[2] if word.startswith("-") else word


def is_ours(module: str) -> bool:
    """Whether a module is of this project: of `verifier`, or of the `runner` that lies beside it in a clone, not of a user's own."""
    package = module.partition(".")[0]
    if package != "runner":
        return package == "verifier"
    found = getattr(sys.modules.get(package), "__file__", None)
    return found is not None and os.path.dirname(os.path.dirname(os.path.realpath(found))) == ROOT  # noqa: PTH120


def own_process() -> None:
    """Make this process, started as `python -m verifier.COMMAND`, one that the caller's folder and settings do not reach.

    Modules of the working folder are not imported. Python's options `-O` and `-W error` are not for us: the command starts again without them.
    """
    sys.path[:] = [entry for entry in sys.path if not _is_shadow(entry)]
    if sys.flags.optimize or any(option.startswith("e") for option in sys.warnoptions):
        words = [*child_command(started_module()), *sys.argv[1:]]
        console = {
            name: value for name, value in os.environ.items() if name == "PYTHONIOENCODING"
        }  # stays the caller's
        os.execve(words[0], words, os.environ | child_environment() | console)


def end_unverified(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of `sys.excepthook` in a command: an import that fails ends with status 2. Python's own status would be 1: "do not ship"."""
    status = INTERRUPTED if issubclass(kind, KeyboardInterrupt) else NOT_VERIFIED
    try:
        if status == NOT_VERIFIED:
            sys.__excepthook__(kind, error, trace)
            said = "see the traceback above. If it names a file of yours, that file has the name of a module: rename it"
            print(f"NOT VERIFIED: the command could not start; {said}", file=sys.stderr)
            sys.stderr.flush()
    finally:
        os._exit(status)


def cache_folder() -> Path:
    """Where an installed verifier keeps what it builds: `llava-verifier` in the user's cache."""
    from pathlib import Path

    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "llava-verifier"  # noqa: PTH111


def with_room(function: Callable[P, R], *given: P.args, **named: P.kwargs) -> R:
    """Call a function with a megabyte of Python's stack ahead of it.

    CPython maps its stack in pieces of 16 kB, and unmaps a piece when a call returns from it. A loop whose calls cross from one piece to the next maps
    and unmaps one at each of them: reading a file of ExecuTorch's in YAML did so 700,000 times, 7 seconds of system time of a gate's 43. A frame that
    asks for so much comes with a piece that holds it and as much again.
    """
    return _call(function, given, named)


def _call(function: Callable[..., R], given: tuple[object, ...], named: dict[str, object]) -> R:
    return function(*given, **named)


_call.__code__ = _call.__code__.replace(co_stacksize=(1 << 17) + 1)


def _is_shadow(entry: str) -> bool:
    """Whether an entry of a path is the working folder, and not where `verifier` comes from."""
    try:
        return os.path.samefile(entry or ".", ".") and not os.path.samefile(".", ROOT)  # noqa: PTH121
    except OSError:
        return False


def _installed() -> tuple[str, ...]:
    """Folders that every Python of this installation looks into."""
    import site

    return tuple(os.path.realpath(folder) for folder in (*site.getsitepackages(), site.getusersitepackages()))
