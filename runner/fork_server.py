"""A process that has imported the runtime and does nothing but fork: each fork carries out one bundle, as a process of its own.

Importing torch and the kernels takes 1.7 seconds of a core, more than most bundles take; a gate starts dozens. The server has one thread and has loaded
no program, so a fork is as a new process is. An abort ends the fork alone. `python -m verifier.runner.fork_server` reads a request, a JSON object,
from each line of stdin; it answers with the fork's process id and, at the fork's end, with its exit status (negative for a signal) and peak memory in bytes, each on a line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from verifier.core.errors import RunnerError
from verifier.core.python import child_command, child_environment
from verifier.core.system import (
    await_end,
    die_with_parent,
    limit_memory,
    peak_bytes_of,
    physical_memory_bytes,
    scratch_file,
)
from verifier.runner.exchange import Ending
from verifier.runner.process import LONGEST_S

LOOK_S = 2.0
"""How often the server looks whether the process that started it is still there: a fork of that process may hold its pipe open."""
START_S = 300.0
"""Longest time that the server may take to start and to fork."""
_SHOWN_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """Carry out the bundle in the folder `sent`, into `back`, with that much memory; stderr goes to `errors`."""

    sent: str
    back: str
    errors: str
    memory_bytes: int


class ForkServer:
    """The other end: a server that carries out one bundle at a time. `peak_rss_bytes` is that of its largest fork so far."""

    def __init__(self) -> None:
        command = child_command("verifier.runner.fork_server")
        environment = os.environ | child_environment()
        pipe = subprocess.PIPE
        self.peak_rss_bytes = 0
        self._server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)

    @property
    def is_alive(self) -> bool:
        """Whether it can take another request."""
        return self._server.poll() is None

    @property
    def process(self) -> int:
        """Its process id."""
        return self._server.pid

    def run(self, sent: Path, back: Path, *, timeout_s: float, memory_bytes: int | None) -> Ending:
        """Carry out a bundle. Raises `RunnerError` if the server itself fails."""
        memory = physical_memory_bytes() if memory_bytes is None else memory_bytes
        with scratch_file() as (errors, said):
            try:
                self._send(Request(str(sent), str(back), said, memory))
                fork = self._numbers(START_S)
                if fork is None:
                    raise self._failure()
                status = self._status(fork[0], min(timeout_s, LONGEST_S))
            except BaseException:
                self.close()  # the answer of this request must not be read as that of the next
                raise
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SHOWN_BYTES))
            return Ending(status, errors.read().decode(errors="replace"))

    def close(self) -> None:
        """End the server, and a fork that is still at work."""
        self._server.kill()
        self._server.communicate()

    def _send(self, request: Request) -> None:
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        except BrokenPipeError as error:
            raise self._failure() from error

    def _status(self, fork: int, timeout_s: float) -> int | None:
        """Its exit status, None if it was stopped when its time was over."""
        ended = self._numbers(timeout_s)
        late = ended is None
        if late:
            with suppress(ProcessLookupError):
                os.kill(fork, signal.SIGKILL)
            ended = self._numbers(START_S)
        if ended is None:  # its answer must not be read as that of the next request
            raise self._failure()
        status, peak = ended
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak)
        return None if late else status

    def _numbers(self, timeout_s: float) -> list[int] | None:
        """The next answer; None if it does not come in time."""
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], timeout_s)[0]:
            return None
        line = self._server.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._failure()
        return [int(word) for word in line.split()]

    def _failure(self) -> RunnerError:
        self._server.kill()
        _, errors = self._server.communicate()
        return RunnerError(
            "the process that starts runtimes failed in its own code",
            got=errors.decode(errors="replace").strip()[-2000:],
        )


def serve() -> None:
    """Carry out what stdin asks for until it ends, or until the process that started this one has ended."""
    from verifier.runner import child

    starter = os.getppid()
    child.preload()
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], LOOK_S)
        if os.getppid() != starter:
            return
        if not ready:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, waiting = (waiting + read).split(b"\n")
        for line in lines:
            _serve_one(Request(**json.loads(line)), starter)


def _serve_one(request: Request, starter: int) -> None:
    fork = os.fork()
    if fork == 0:
        _carry_out(request)
    _answer(fork)

    def look() -> None:
        if os.getppid() != starter:
            os.kill(fork, signal.SIGKILL)

    status, usage = await_end(fork, every_s=LOOK_S, look=look)
    _answer(os.waitstatus_to_exitcode(status), peak_bytes_of(usage))


def _answer(*numbers: int) -> None:
    os.write(1, " ".join(map(str, numbers)).encode() + b"\n")


def _carry_out(request: Request) -> NoReturn:
    """In the fork: none of the server's pipes is left open, so nothing can answer in its place."""
    from verifier.runner import child

    status = 1
    try:
        die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(nowhere, standard)
        os.dup2(os.open(request.errors, os.O_WRONLY | os.O_APPEND), 2)
        limit_memory(os.getpid(), request.memory_bytes)
        status = child.main(request.sent, request.back)
    except BaseException:  # a fork never goes on as the server
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


_Owner = tuple[int, dict[str, str]]
_idle: list[tuple[_Owner, ForkServer]] = []
_lock = threading.Lock()
_peaks: dict[int, int] = {}
"""By process, the peak memory of its largest fork: the system counts a process's children, not their forks."""


def peak_rss_bytes() -> int:
    """Peak memory of the largest fork that this process asked for, in bytes."""
    return _peaks.get(os.getpid(), 0)


def run_forked(sent: Path, back: Path, *, timeout_s: float, memory_bytes: int | None) -> Ending:
    """Carry out a bundle in a fork of a server that is idle, or of a new one; the server stays for the next bundle.

    A server belongs to one process and one environment: a fork of this process, or a changed variable, gets a server of its own; the one that
    pytest changes for each test is nobody's setting.
    """
    mine = (os.getpid(), {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"})
    server = _take(mine) or ForkServer()
    ending = server.run(sent, back, timeout_s=timeout_s, memory_bytes=memory_bytes)
    with _lock:
        _idle.append((mine, server))
        _peaks[mine[0]] = max(peak_rss_bytes(), server.peak_rss_bytes)
    return ending


def _take(mine: _Owner) -> ForkServer | None:
    """An idle server, out of the list. Those of another environment are ended, those of another process forgotten: they are not ours to end."""
    with _lock:
        owned = [server for owner, server in _idle if owner == mine and server.is_alive]
        unusable = [server for owner, server in _idle if owner != mine and owner[0] == mine[0]]
        _idle[:] = [(mine, server) for server in owned[1:]]
    for server in unusable:
        server.close()
    return owned[0] if owned else None


if __name__ == "__main__":
    serve()
