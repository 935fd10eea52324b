"""The `local` target: ExecuTorch's Python runtime in a child process on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.protocol import Bundle, Outcome, Result, load_further, load_outputs, save_bundle
from verifier.errors import RunnerError

_ROOT = Path(__file__).resolve().parents[1]
_TAIL = 2000


@dataclass(frozen=True)
class LocalRunner:
    """Starts one child per bundle: an abort of the runtime ends the child, not the caller."""

    @property
    def name(self) -> str:
        """`local`."""
        return "local"

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle. A dead or late child is an outcome; only a child that cannot start is an error."""
        with tempfile.TemporaryDirectory(prefix="verifier-") as folder:
            directory = Path(folder)
            save_bundle(bundle, directory)
            path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if p)
            try:
                child = subprocess.run(
                    [sys.executable, "-m", "runner.child", folder],
                    env=os.environ | {"PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return _unfinished(directory, bundle, "timeout", f"did not end within {timeout_s:g} s")
            except OSError as error:
                raise RunnerError("the child process cannot be started", got=error, where=sys.executable) from error
            if child.returncode != 0 or not (directory / "result.json").is_file():
                errors = child.stderr.decode(errors="replace")[-_TAIL:]
                if child.returncode > 0 and "Traceback" in errors:
                    raise RunnerError("the child process failed in its own code", got=errors, where="runner.child")
                return _unfinished(directory, bundle, "crashed", f"{_ending(child.returncode)}: {_last_lines(errors)}")
            return _finished(directory, bundle, json.loads((directory / "result.json").read_text()))


def _finished(directory: Path, bundle: Bundle, fields: dict[str, Any]) -> Result:
    call_s = tuple(fields["call_s"])
    return Result(
        outcome=fields["outcome"],
        message=fields["message"],
        outputs=load_outputs(directory, range(len(call_s))),
        further=load_further(directory, bundle.calls[: len(call_s)]),
        errors={int(call): str(text) for call, text in fields["errors"].items()},
        call_s=call_s,
        load_s=fields["load_s"],
        peak_rss_bytes=fields["peak_rss_bytes"],
        versions=fields["versions"],
        operators=tuple(fields["operators"]),
    )


def _unfinished(directory: Path, bundle: Bundle, outcome: Outcome, message: str) -> Result:
    at = directory / "at.txt"
    if not at.is_file():
        return Result(outcome, f"while the program was loaded: {message}")
    number = int(at.read_text() or 0)
    method = bundle.calls[number].method
    return Result(outcome, f"in call {number} ({method}): {message}", load_outputs(directory, range(number)))


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _last_lines(text: str, lines: int = 3) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-400:] if lines else ""
