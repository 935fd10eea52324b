"""A real sshd on loopback, for this user alone: own host key, own authorized key, own home folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "board"
"""The name that `~/.ssh/config` of the tests gives it."""


def find_sshd() -> str | None:
    """Its path, where it is installed."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class Sshd:
    """One server. `home` is the home folder of whoever logs in, `client` that of whoever connects."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    shell: Path | None = None
    """What runs every command in place of the login shell: it finds the command in SSH_ORIGINAL_COMMAND."""

    @property
    def home(self) -> Path:
        """At the far end."""
        return self.folder / "home"

    @property
    def client(self) -> Path:
        """At this end: `.ssh` lies in it."""
        return self.folder / "client"

    def set_up(self) -> None:
        """Keys and configurations of both ends."""
        for place in (self.home, self.client / ".ssh"):
            place.mkdir(parents=True)
        for key in (self.folder / "host_key", self.client / ".ssh" / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(self.client / ".ssh" / "id_ed25519.pub", self.folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'pid'}",
            f"SetEnv HOME={self.home}",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "UsePAM no",
            *([] if self.shell is None else [f"ForceCommand {self.shell}"]),
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.trust((self.folder / "host_key.pub").read_text())
        (self.client / ".ssh" / "config").write_text(
            f"Host {HOST}\n  HostName 127.0.0.1\n  Port {self.port}\n"
            f"  IdentityFile {self.client}/.ssh/id_ed25519\n  UserKnownHostsFile {self.client}/.ssh/known_hosts\n"
        )

    def trust(self, public_key: str) -> None:
        """Make this the known key of the host."""
        kind, key = public_key.split()[:2]
        (self.client / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{self.port},{HOST} {kind} {key}\n")

    def start(self) -> None:
        """Start it and wait until it answers."""
        Path("/run/sshd").mkdir(exist_ok=True)
        command = [str(find_sshd()), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(100):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def hang_up(self) -> None:
        """End the connections that there are, as a router does that is switched off."""
        assert self.process is not None
        for child in _descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """End everything."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)  # no new ones
            self.hang_up()
            self.process.kill()
            self.process.wait()
            self.process = None

    def logins(self) -> int:
        """How often somebody was let in."""
        return (self.folder / "log").read_text().count("Accepted publickey")

    def left_behind(self) -> list[str]:
        """Files below the far end's cache but for programs and binaries that are meant to stay."""
        cache = self.home / ".cache" / "llava-verifier"
        return [
            str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.parts[len(cache.parts)] == "run"
        ]


def _descendants(process: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout
    children = [int(line) for line in listed.split()]
    return [*children, *(found for child in children for found in _descendants(child))]
