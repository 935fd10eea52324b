"""A bundle in a child process: whatever becomes of the child is an outcome of the bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.protocol import Bundle, Outcome, Result, load_further, load_outputs, save_bundle
from verifier.errors import RunnerError

LONGEST_S = 86_400.0
"""A day: `poll` takes no more than 2^31 milliseconds, and no bundle is worth waiting longer for."""
_TAIL = 2000


def run_child(
    command: Callable[[Path], Sequence[str]], bundle: Bundle, *, timeout_s: float, env: Mapping[str, str] | None = None
) -> Result:
    """Save the bundle, run `command(folder)`, and read back what it left there.

    A dead or late child is an outcome. Raises `RunnerError` for one that cannot start, or that failed in its own code:
    exit status 1 with a traceback, or 2.
    """
    with tempfile.TemporaryDirectory(prefix="verifier-") as name:
        folder = Path(name)
        try:
            save_bundle(bundle, folder)
        except OSError as error:
            if _is_full(str(error)):
                raise _no_space(folder) from error
            raise
        words = list(command(folder))
        try:
            child = subprocess.run(
                words,
                env=os.environ | dict(env or {}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=min(timeout_s, LONGEST_S),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _unfinished(folder, bundle, "timeout", f"did not end within {timeout_s:g} s")
        except OSError as error:
            raise RunnerError("the child process cannot be started", got=error, where=words[0]) from error
        if child.returncode == 0 and (folder / "result.json").is_file():
            return _finished(folder, bundle, json.loads((folder / "result.json").read_text()))
        errors = child.stderr.decode(errors="replace")[-_TAIL:]
        if child.returncode > 0 and _is_full(errors):
            raise _no_space(folder)
        if child.returncode == 2 or (child.returncode > 0 and "Traceback" in errors):
            raise RunnerError("the child process failed in its own code", got=errors, where=" ".join(words[:3]))
        return _unfinished(folder, bundle, "crashed", f"{_ending(child.returncode)}: {_last_lines(errors)}")


def _is_full(text: str) -> bool:
    """Whether an error speaks of a full disk: the system's words, NumPy's for a short write, the C++ runner's."""
    return any(words in text for words in ("No space left", " requested and ", "is the disk full?"))


def _no_space(folder: Path) -> RunnerError:
    return RunnerError("no space is left for a bundle and its results", where=folder, fix="free some, or set TMPDIR")


def _finished(folder: Path, bundle: Bundle, fields: dict[str, Any]) -> Result:
    call_s = tuple(fields["call_s"])
    return Result(
        outcome=fields["outcome"],
        message=fields["message"],
        outputs=load_outputs(folder, range(len(call_s))),
        further=load_further(folder, bundle.calls[: len(call_s)]),
        errors={int(call): str(text) for call, text in fields["errors"].items()},
        call_s=call_s,
        load_s=fields["load_s"],
        peak_rss_bytes=fields["peak_rss_bytes"],
        versions=fields["versions"],
        operators=tuple(fields["operators"]),
        isa=str(fields["isa"]),
        cpu_features=tuple(str(name) for name in fields["cpu_features"]),
    )


def _unfinished(folder: Path, bundle: Bundle, outcome: Outcome, message: str) -> Result:
    at = folder / "at.txt"
    if not at.is_file():
        return Result(outcome, f"while the program was loaded: {message}")
    number = int(at.read_text() or 0)
    method = bundle.calls[number].method
    return Result(outcome, f"in call {number} ({method}): {message}", load_outputs(folder, range(number)))


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _last_lines(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-400:]
