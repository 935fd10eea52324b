"""Several boards at once: two servers on loopback, one worker each, by pytest-xdist's own scheduling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runners.servers.sshd import Sshd, find_sshd
from verifier.runner.native import NativeRunner

pytestmark = pytest.mark.xdist_group("runner")
BOARDS = ("board-a", "board-b")
CHECKS = "structure.limits,structure.operators,splice.tokens"


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[tuple[Path, list[Sshd]]]:
    """A home whose ssh configuration knows both, and the servers."""
    if find_sshd() is None:
        pytest.skip("needs Debian's openssh-server")
    servers = []
    home = tmp_path / "client"
    (home / ".ssh").mkdir(parents=True)
    for name in BOARDS:
        folder = tmp_path / name
        folder.mkdir()
        server = Sshd(folder)
        server.set_up()
        server.start()
        servers.append(server)
        with (home / ".ssh" / "config").open("a") as file:
            file.write(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n"
                f"  IdentityFile {server.client}/.ssh/id_ed25519\n  UserKnownHostsFile {server.client}/.ssh/known_hosts\n"
            )
    yield home, servers
    for server in servers:
        server.stop()


@pytest.mark.slow  # two emulated boards: two minutes without AVX-512; ssh and qemu have quick tests of their own
def test_two_boards_are_verified_side_by_side(
    boards: tuple[Path, list[Sshd]], native: NativeRunner, micro_model: Path, tmp_path: Path
) -> None:
    """Every case on each board; each board has one worker, a login of its own, and a report of its own."""
    home, servers = boards
    words = [f"--pte={micro_model / 'model.pte'}", "--pte-model", str(micro_model), "--pte-checks", CHECKS]
    words += [word for name in BOARDS for word in ("--pte-target", f"ssh:{name}")]
    words += [
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-v",
        "--pte-report",
        str(tmp_path / "reports"),
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"HOME": str(home), "LLAVA_MAIN": str(native.binary), "COLUMNS": "200"}
    environment.pop("SSH_AUTH_SOCK", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = [line for line in done.stdout.splitlines() if " PASSED " in line]
    of = {name: [line for line in passed if f"model.pte@ssh:{name}::" in line] for name in BOARDS}
    assert len(of[BOARDS[0]]) == len(of[BOARDS[1]]) >= 3
    assert len(passed) == len(of[BOARDS[0]]) + len(of[BOARDS[1]])
    workers = {name: {line.split("]")[0].strip("[") for line in lines} for name, lines in of.items()}
    assert all(len(each) == 1 for each in workers.values())
    for name, server in zip(BOARDS, servers, strict=True):
        assert server.logins() > 0
        report = json.loads((tmp_path / "reports" / f"model.pte@ssh_{name}" / "report.json").read_text())
        assert report["target"]["name"] == f"ssh:{name}"
        assert report["verdict"] == "pass"


def test_board_that_is_off_is_named_before_anything_runs(
    boards: tuple[Path, list[Sshd]], native: NativeRunner, micro_model: Path, tmp_path: Path
) -> None:
    """pytest's status for bad usage, and the board's name."""
    home, servers = boards
    servers[1].stop()
    words = [f"--pte={micro_model / 'model.pte'}", "--pte-model", str(micro_model), "-p", "no:cacheprovider"]
    words += [word for name in BOARDS for word in ("--pte-target", f"ssh:{name}")]
    environment = os.environ | {"HOME": str(home), "LLAVA_MAIN": str(native.binary)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "board-b" in done.stdout + done.stderr
