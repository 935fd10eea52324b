"""`ssh:` against a real sshd on loopback: what goes wrong between two machines has its name, and nothing is left behind."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.runners.servers.sshd import HOST, Sshd
from tests.support import EMBEDDED_PTE, verify
from verifier.core.errors import RunnerError
from verifier.runner import ssh
from verifier.runner.protocol import Bundle, Call, program_hash
from verifier.runner.qemu import QemuRunner
from verifier.runner.remote import RemoteRunner
from verifier.runner.ssh import SshLink, make_ssh_runner
from verifier.runner.targets import make_runner, no_transfer

pytestmark = pytest.mark.xdist_group("runner")
TARGET = f"ssh:{HOST}"
ONE_CALL = (Call("token_embedding", (np.array([[5]]),)),)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of 48 MB that is no program."""
    path = tmp_path / "large.pte"
    path.write_bytes(np.random.default_rng(0).bytes(48 << 20))
    return path


def test_program_is_sent_once_and_found_again(sshd: Sshd) -> None:
    """By its hash, also by a later runner; a file of that name with other bytes is not taken for it. Runs leave nothing."""
    heard: list[str] = []

    def on_transfer(what: str, done: int, whole: int) -> None:
        heard.append(what)

    for _ in range(2):
        with closing(make_ssh_runner(TARGET, on_transfer)) as runner:
            for _ in range(2):
                assert runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60).outcome == "ok"
    sent = heard.count(EMBEDDED_PTE.name)
    assert sent == -(-EMBEDDED_PTE.stat().st_size // (1 << 20))  # once, in pieces of 1 MiB
    place = sshd.home / ".cache" / "llava-verifier" / "programs" / f"{program_hash(EMBEDDED_PTE)}.pte"
    place.write_bytes(b"something else")
    with closing(make_ssh_runner(TARGET, on_transfer)) as runner:
        assert runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60).outcome == "ok"
    assert heard.count(EMBEDDED_PTE.name) == 2 * sent
    assert sshd.left_behind() == []


def test_program_that_is_gone_here_is_removed_there(sshd: Sshd, tmp_path: Path) -> None:
    """Copies for a probe do not pile up on the board; the program itself stays."""
    copy = tmp_path / "copy.pte"
    copy.write_bytes(EMBEDDED_PTE.read_bytes() + b"\0")
    with closing(make_ssh_runner(TARGET, no_transfer)) as runner:
        runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
        runner.run(Bundle(copy, ONE_CALL), timeout_s=60)
        copy.unlink()
    kept = [path.stem for path in (sshd.home / ".cache" / "llava-verifier" / "programs").iterdir()]
    assert kept == [program_hash(EMBEDDED_PTE)]


def test_lost_connection_is_made_again_and_the_transfer_goes_on(sshd: Sshd, large: Path) -> None:
    """The connection drops in the middle of 48 MB: the second try begins where the first one ended."""
    heard: list[int] = []

    def on_transfer(what: str, done: int, whole: int) -> None:
        if what == large.name:
            heard.append(done)
            if len(heard) == 20:
                sshd.hang_up()

    with closing(make_ssh_runner(TARGET, on_transfer)) as runner:
        result = runner.run(Bundle(large, ONE_CALL), timeout_s=60)
    assert result.outcome in ("refused", "failed", "crashed")  # it is no program
    assert sshd.logins() == 2
    assert min(heard[20:]) > 1 << 20  # not from the beginning
    assert heard[-1] == large.stat().st_size
    assert sshd.left_behind() == []


def test_killed_server_is_named(sshd: Sshd, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd dies in the middle of a transfer and does not come back: `RunnerError`, not a verdict."""
    monkeypatch.setattr("verifier.runner.remote.WAITS_S", (0.1, 0.1))

    def on_transfer(what: str, done: int, whole: int) -> None:
        if what == large.name and done > whole // 3:
            sshd.stop()

    with (
        closing(make_ssh_runner(TARGET, on_transfer)) as runner,
        pytest.raises(RunnerError, match="connection was lost"),
    ):
        runner.run(Bundle(large, ONE_CALL), timeout_s=60)


def test_connection_lost_while_the_program_runs(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What still runs there is ended before it is tried again, and the second try is the one that counts."""
    marks = tmp_path / "marks"
    slow = tmp_path / "slow.sh"
    binary = Path(_environment("LLAVA_MAIN"))
    slow.write_text(
        f'#!/bin/sh\ncase "$1" in --about) exec {binary} "$@";; esac\n'
        f'echo $$ >> {marks}\n[ $(wc -l < {marks}) = 1 ] && sleep 300\nexec {binary} "$@"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("LLAVA_SSH_COMMAND", str(slow))
    with closing(make_ssh_runner(TARGET, no_transfer)) as runner:
        threading.Thread(target=_when, args=(marks.exists, sshd.hang_up), daemon=True).start()
        assert runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60).outcome == "ok"
    first, second = marks.read_text().split()
    assert not _runs(first)
    assert not _runs(second)
    assert sshd.left_behind() == []


def test_late_program_is_ended_there(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit is an outcome, and no process stays."""
    marks, slow = tmp_path / "marks", tmp_path / "slow.sh"
    binary = _environment("LLAVA_MAIN")
    slow.write_text(f'#!/bin/sh\ncase "$1" in --about) exec {binary} "$@";; esac\necho $$ > {marks}\nexec sleep 300\n')
    slow.chmod(0o755)
    monkeypatch.setenv("LLAVA_SSH_COMMAND", str(slow))
    with closing(make_ssh_runner(TARGET, no_transfer)) as runner:
        result = runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=2)
    assert (result.outcome, "did not end within 2 s" in result.message) == ("timeout", True)
    assert not _runs(marks.read_text().strip())
    assert sshd.left_behind() == []


def test_file_cut_off_in_flight_is_never_run(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives is hashed there: damaged twice, it is given up; damaged once, it is sent again."""
    whole_send: Callable[..., None] = SshLink.send
    damaged: list[int] = []

    def send(self: SshLink, local: Path, remote: str, on_transfer: Callable[[int], None]) -> None:
        whole_send(self, local, remote, on_transfer)
        if remote.endswith(".pte.part") and len(damaged) < damages:
            damaged.append(1)
            self.shell(f"truncate -s -100 {remote}", timeout_s=60)

    monkeypatch.setattr(SshLink, "send", send)
    with closing(make_ssh_runner(TARGET, no_transfer)) as runner:
        damages = 2
        with pytest.raises(RunnerError, match="arrives damaged"):
            runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
        damages = 3
        assert runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60).outcome == "ok"
    assert not list(sshd.home.rglob("*.part"))


def test_full_disk_there_is_named(sshd: Sshd, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space on the board, seen beforehand or in the middle of a transfer: `RunnerError` that says so."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", sshd.home], check=False)
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        with (
            closing(make_ssh_runner(TARGET, no_transfer)) as runner,
            pytest.raises(RunnerError, match="no space is left on"),
        ):
            runner.run(Bundle(large, ONE_CALL), timeout_s=60)
        monkeypatch.setattr(RemoteRunner, "_see_room", lambda *_: None)
        with (
            closing(make_ssh_runner(TARGET, no_transfer)) as runner,
            pytest.raises(RunnerError, match="no space is left on"),
        ):
            runner.run(Bundle(large, ONE_CALL), timeout_s=60)
    finally:
        subprocess.run(["umount", sshd.home], check=True)


def test_host_with_another_key_is_refused(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, before anything is sent."""
    sshd.trust((sshd.client / ".ssh" / "id_ed25519.pub").read_text())
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 2
    said = capsys.readouterr().err
    assert "the host's key is not the known one" in said
    assert "ssh-keygen -R" in said
    assert list(sshd.home.iterdir()) == []


def test_host_that_lets_nobody_in_is_named(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    """No password is asked for."""
    (sshd.folder / "authorized_keys").write_text("")
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 2
    assert "accepts no key of yours" in capsys.readouterr().err


def test_host_that_is_not_there_is_named(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing listens."""
    monkeypatch.setattr("verifier.runner.remote.WAITS_S", (0.1,))
    sshd.stop()
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 2
    assert "the connection was lost" in capsys.readouterr().err


def test_binary_of_another_architecture_is_named(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `llava_main` that this machine cannot run, here and at the far end: exit status 2, and what to give instead."""
    foreign = tmp_path / "llava_main"
    head = bytearray(Path(_environment("LLAVA_MAIN")).read_bytes()[:4096])
    head[18:20] = (21).to_bytes(2, "little")  # EM_PPC64
    foreign.write_bytes(head)
    foreign.chmod(0o755)
    monkeypatch.setenv("LLAVA_MAIN", str(foreign))
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 2
    said = capsys.readouterr().err
    assert "built for another architecture" in said
    assert "machine 21" in said
    assert verify(EMBEDDED_PTE, "--target", "native", "--checks", "layers.*") == 2
    assert "built for another architecture" in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_SSH_COMMAND", str(foreign))
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 2
    said = capsys.readouterr().err
    assert "llava_main does not run there" in said
    assert f"it is a {platform.machine()} machine" in said


@pytest.mark.parametrize("target", ["ssh:", "ssh:-oProxyCommand=x", "ssh:a b", "ssh:$(x)@h", "sshx"])
def test_odd_hosts_are_bad_usage(target: str) -> None:
    """Nothing that a shell or an option parser could take for more than a name."""
    with pytest.raises(Exception, match=r"not a host|unknown target"):
        make_runner(target)


@pytest.fixture
def arm_board(sshd: Sshd, emulated: QemuRunner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The server, with an emulated `llava_main` behind it."""
    monkeypatch.setenv("LLAVA_SSH_COMMAND", shlex.join([*emulated.emulation, str(emulated.binary)]))
    yield sshd


@pytest.mark.slow
def test_arm_behind_a_network_is_verified(arm_board: Sshd, tmp_path: Path) -> None:
    """Every instruction of two conversations on an Arm target over a real network protocol."""
    assert verify(EMBEDDED_PTE, "--target", TARGET, "--checks", "layers.*,device.*", "--report", str(tmp_path)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["target"]["isa"], report["target"]["name"]) == ("aarch64", TARGET)
    assert {rung["step"]: rung["verdict"] for rung in report["rungs"]}["device"] == "pass"
    assert arm_board.left_behind() == []


@pytest.mark.slow
def test_arm_behind_a_network_passes_every_check(arm_board: Sshd) -> None:
    """The whole gate over ssh."""
    assert verify(EMBEDDED_PTE, "--target", TARGET) == 0
    assert arm_board.left_behind() == []


def test_result_that_is_too_large_is_not_fetched(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board does not fill the disk of whoever asks it."""
    monkeypatch.setattr("verifier.runner.remote.LARGEST_RESULT_BYTES", 1000)
    with closing(make_ssh_runner(TARGET, no_transfer)) as runner, pytest.raises(RunnerError, match="too large"):
        runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)


def test_close_twice_and_without_a_connection(sshd: Sshd) -> None:
    """Hanging up is harmless."""
    runner: RemoteRunner = make_ssh_runner(TARGET, no_transfer)
    sshd.stop()
    runner.close()
    assert ssh.SshLink("nowhere.invalid", None).close() is None


def _environment(name: str) -> str:
    import os

    return os.environ[name]


def _when(ready: Callable[[], bool], act: Callable[[], None]) -> None:
    for _ in range(600):
        if ready():
            time.sleep(0.3)
            act()
            return
        time.sleep(0.05)


def _runs(process: str) -> bool:
    """Whether a process is there and is not just waiting to be buried."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
