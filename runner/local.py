"""The `local` target: ExecuTorch's Python runtime in a child process on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from verifier.core.python import child_command
from verifier.core.system import can_fork, machine
from verifier.runner.exchange import Ending, exchange
from verifier.runner.fork_server import run_forked
from verifier.runner.process import run_python
from verifier.runner.protocol import Bundle, Result


@dataclass(frozen=True)
class LocalRunner:
    """Starts one child per bundle: an abort of the runtime ends the child, not the caller."""

    @property
    def name(self) -> str:
        """`local`."""
        return "local"

    @property
    def isa(self) -> str:
        """That of this machine."""
        return machine()

    @property
    def at_once(self) -> int:
        """One: the other core computes references."""
        return 1

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `exchange` for what is an outcome and what an error."""
        if not can_fork():
            return run_python(child_command("verifier.runner.child"), bundle, timeout_s=timeout_s)

        def carry(sent: Path, back: Path) -> Ending:
            return run_forked(sent, back, timeout_s=timeout_s, memory_bytes=bundle.memory_bytes)

        return exchange(bundle, carry, timeout_s=timeout_s)

    def close(self) -> None:
        """The server of its forks ends with this process."""
