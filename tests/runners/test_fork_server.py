"""The server that forks a process for each bundle: a fork is as apart as a new process, and no server outlives its user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import EMBEDDED_PTE
from verifier.core.errors import RunnerError
from verifier.core.python import child_environment
from verifier.runner import fork_server
from verifier.runner.exchange import Ending, exchange
from verifier.runner.fork_server import ForkServer
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call, Result

SOUND = Bundle(EMBEDDED_PTE, (Call("token_embedding", (np.array([[5, 9]]),)),))
pytestmark = pytest.mark.xdist_group("runner")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One that all tests of this module ask."""
    server = ForkServer()
    yield server
    server.close()


def _run(server: ForkServer, bundle: Bundle, timeout_s: float = 60) -> Result:
    def carry(sent: Path, back: Path) -> Ending:
        return server.run(sent, back, timeout_s=timeout_s, memory_bytes=bundle.memory_bytes)

    return exchange(bundle, carry, timeout_s=timeout_s)


def _crashing(tmp_path: Path) -> Bundle:
    """A trace of more than its buffer holds aborts the process."""
    from verifier.runner.protocol import TraceRequest

    return Bundle(EMBEDDED_PTE, SOUND.calls, trace=TraceRequest(tmp_path, 64))


def test_an_abort_ends_the_fork_alone(server: ForkServer, tmp_path: Path) -> None:
    """The outcome names the signal and what was printed, and the next bundle is answered."""
    crashed = _run(server, _crashing(tmp_path))
    assert (crashed.outcome, "SIGABRT" in crashed.message) == ("crashed", True), crashed.message
    sound = _run(server, SOUND)
    assert (sound.outcome, sound.outputs[0].shape) == ("ok", (1, 2, 256))
    assert server.peak_rss_bytes >= sound.peak_rss_bytes > 50e6


def test_only_a_changed_setting_starts_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest changes a variable of its own for every test: that is no setting."""
    started: list[ForkServer] = []

    def start() -> ForkServer:
        started.append(ForkServer())
        return started[-1]

    monkeypatch.setattr(fork_server, "ForkServer", start)
    monkeypatch.setattr(fork_server, "_idle", [])
    for name, value, count in (("PYTEST_CURRENT_TEST", "a", 1), ("PYTEST_CURRENT_TEST", "b", 1), ("ANOTHER", "1", 2)):
        monkeypatch.setenv(name, value)
        assert LocalRunner().run(SOUND, timeout_s=60).outcome == "ok"
        assert len(started) == count, name
    assert [server.is_alive for server in started] == [False, True]
    started[-1].close()


def test_a_late_fork_is_stopped(server: ForkServer) -> None:
    """No time at all: the outcome says so, the fork is gone, and the server goes on."""
    assert _run(server, SOUND, timeout_s=0).outcome == "timeout"
    assert psutil.Process(server.process).children() == []
    assert _run(server, SOUND).outcome == "ok"


def test_a_fork_has_its_own_limit_of_memory(server: ForkServer) -> None:
    """What one may not allocate, the next may."""
    from dataclasses import replace

    assert _run(server, replace(SOUND, memory_bytes=1 << 20)).outcome in ("memory", "crashed")
    assert _run(server, SOUND).outcome == "ok"


def test_a_bundle_that_cannot_be_read_is_our_own_failure(server: ForkServer, tmp_path: Path) -> None:
    """Exit status 2 and the reason on stderr, as from a process of its own."""
    (tmp_path / "back").mkdir()
    ending = server.run(tmp_path / "nothing", tmp_path / "back", timeout_s=60, memory_bytes=None)
    assert ending.status != 0
    assert "nothing" in ending.errors


def test_a_server_that_died_is_named() -> None:
    """Whoever ended it: an error of ours, no verdict about the program."""
    server = ForkServer()
    os.kill(server.process, signal.SIGKILL)
    with pytest.raises(RunnerError, match="the process that starts runtimes failed"):
        _run(server, SOUND)
    assert not server.is_alive


TWO_BUNDLES = """
import os, sys
import numpy as np
from pathlib import Path
from verifier.runner import fork_server
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call
bundle = Bundle(Path(sys.argv[1]), (Call("token_embedding", (np.array([[5]]),)),))
def server():
    assert LocalRunner().run(bundle, timeout_s=60).outcome == "ok"
    return fork_server._idle[-1][1].process
first = server()
assert server() == first
os.environ["OMP_NUM_THREADS"] = "3"
second = server()
if os.fork() == 0:
    os._exit(server() == second)
print(first, second, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_servers_belong_to_a_process_and_an_environment_and_end_with_it() -> None:
    """The second bundle meets the same server; another variable, or a fork, another one; none of them is left."""
    words = [sys.executable, "-c", TWO_BUNDLES, str(EMBEDDED_PTE)]
    environment = os.environ | child_environment()
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    first, second, shared = map(int, done.stdout.split())
    assert (first != second, shared) == (True, 0)
    until = time.monotonic() + 20
    while any(map(psutil.pid_exists, (first, second))):
        assert time.monotonic() < until
        time.sleep(0.1)
