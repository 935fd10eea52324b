"""A process on this machine that carries out a bundle, within limits of time and memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from verifier.core.errors import RunnerError
from verifier.core.python import child_environment
from verifier.core.system import limit_memory, physical_memory_bytes
from verifier.runner.exchange import Ending, exchange
from verifier.runner.protocol import Bundle, Result

LONGEST_S = 86_400.0
"""A day: `poll` takes no more than 2^31 milliseconds, and no bundle is worth waiting longer for."""


def run_child(
    command: Callable[[Path, Path], Sequence[str]],
    bundle: Bundle,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Have `command(bundle's folder, result's folder)` carry out a bundle; see `exchange` for what comes of it."""

    def carry(sent: Path, back: Path) -> Ending:
        return run_process(command(sent, back), timeout_s=timeout_s, env=env, memory_bytes=bundle.memory_bytes)

    return exchange(bundle, carry, timeout_s=timeout_s)


def run_python(words: Sequence[str], bundle: Bundle, *, timeout_s: float) -> Result:
    """Have `verifier.runner.child`, which `words` start in some Python, carry out a bundle; see `exchange` for what comes of it."""
    return run_child(
        lambda sent, back: [*words, str(sent), str(back)], bundle, timeout_s=timeout_s, env=child_environment()
    )


def run_process(
    words: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None, memory_bytes: int | None = None
) -> Ending:
    """Run a process to its end, or stop it when its time is over. It may allocate no more than this machine's memory, or
    `memory_bytes`. Raises `RunnerError` for one that cannot start."""
    try:
        child = subprocess.Popen(
            list(words),
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        fix = "rebuild it for this machine" if "Exec format" in str(error) else None
        raise RunnerError("the process cannot be started", got=error, where=words[0], fix=fix) from error
    with child:
        limit_memory(child.pid, physical_memory_bytes() if memory_bytes is None else memory_bytes)
        try:
            _, errors = child.communicate(timeout=min(timeout_s, LONGEST_S))
        except BaseException as error:
            child.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise  # an interrupt leaves no process behind
            return Ending(None)
    return Ending(child.returncode, errors.decode(errors="replace"))
