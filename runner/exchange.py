"""A bundle goes out, a result comes back: whatever becomes of the process that carries it out is an outcome of the bundle.

Where and how it is carried out is another matter: a child process here, or one on another machine.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from verifier.core.errors import RunnerError
from verifier.runner.bundle import save_bundle
from verifier.runner.constants import BUFFER_FILE, ETDUMP_FILE, PLACE_FILE, RESULT_FILE
from verifier.runner.protocol import Bundle, Outcome, Result
from verifier.runner.result import load_outputs, load_result

_TAIL = 2000
_FULL = ("No space left", " requested and ", "is the disk full?")
"""Of a full disk: the system's words, NumPy's for a short write, the C++ runner's."""
_STARVED = ("bad_alloc", "MemoryError", "allocate memory", "error: 0x21", "failed with error 0x21")
"""Of memory refused: C++, Python, the system and torch, ExecuTorch's MemoryAllocationFailed."""
_SILENT = "the system's memory ran out, or somebody ended it"


@dataclass(frozen=True)
class Ending:
    """How the process ended: its exit status, negative for a signal, None if it was stopped when its time was over; and what
    it wrote to stderr."""

    status: int | None
    errors: str = ""


Carry = Callable[[Path, Path], Ending]
"""Carries out the bundle of one folder, and leaves what comes of it in another."""


def exchange(bundle: Bundle, carry: Carry, *, timeout_s: float) -> Result:
    """Save the bundle, have it carried out, and read what comes back; nothing is left behind.

    A dead or late process is an outcome. Raises `RunnerError` if the process failed in its own code (exit status 2, or 1
    with a traceback), if a disk is full, and whatever `carry` raises.
    """
    with tempfile.TemporaryDirectory(prefix="verifier-") as name:
        sent, back = Path(name) / "bundle", Path(name) / "result"
        try:
            sent.mkdir()
            back.mkdir()
            save_bundle(bundle, sent)
            ending = carry(sent, back)
        except OSError as error:
            if _speaks_of(_FULL, str(error)):
                raise _no_space(Path(name)) from error
            raise
        result = _read(bundle, back, ending, timeout_s)
        if bundle.trace is not None and result.outcome == "ok":
            for file in (ETDUMP_FILE, BUFFER_FILE):
                with suppress(FileNotFoundError):
                    shutil.move(back / file, bundle.trace.directory / file)
        return result


def _read(bundle: Bundle, back: Path, ending: Ending, timeout_s: float) -> Result:
    status, errors = ending.status, ending.errors[-_TAIL:]
    if status == 0 and (back / RESULT_FILE).is_file():
        result = load_result(back, bundle.calls)
        if result.outcome in ("refused", "failed") and _speaks_of(_STARVED, result.message):
            return Result("memory", f"needs more memory than its limit allows: {result.message}", result.outputs)
        return result
    if status is None:
        return _unfinished(back, bundle, "timeout", f"did not end within {timeout_s:g} s")
    if status > 0 and _speaks_of(_FULL, errors):
        raise _no_space(back)
    if _speaks_of(_STARVED, errors):
        return _unfinished(back, bundle, "memory", f"needs more memory than its limit allows: {_last_lines(errors)}")
    if status == 2 or (status > 0 and "Traceback" in errors):
        raise RunnerError("the process that runs the program failed in its own code", got=errors.strip())
    return _unfinished(back, bundle, "crashed", f"{_cause(status)}: {_last_lines(errors)}")


def _speaks_of(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _no_space(folder: Path) -> RunnerError:
    return RunnerError("no space is left for a bundle and its results", where=folder, fix="free some, or set TMPDIR")


def _unfinished(back: Path, bundle: Bundle, outcome: Outcome, message: str) -> Result:
    at = back / PLACE_FILE
    place = at.read_text() if at.is_file() else ""
    if not place:
        return Result(outcome, f"while the program was loaded: {message}")
    number = int(place)
    method = bundle.calls[number].method
    return Result(outcome, f"in call {number} ({method}): {message}", load_outputs(back, number))


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal_name(-status)
    return f"killed by {name}" + (f" ({_SILENT})" if name == "SIGKILL" else "")


def signal_name(number: int) -> str:
    """`SIGABRT` of 6; a number of no name as it is."""
    names = {one.value: one.name for one in signal.Signals}
    return names.get(number, f"signal {number}")


def _last_lines(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-400:]
