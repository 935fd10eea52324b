"""The `ssh:[user@]host` target: `llava_main` on an Arm board or a machine in the cloud.

OpenSSH's configuration, known hosts, keys and agent are used as `ssh` would; passwords are not. What is needed there: a
shell with `tar`, `timeout`, `sha256sum`, `find`, `pgrep`, and Linux for one of the architectures that `llava_main` is built for.
`LLAVA_SSH_COMMAND` is a command there that runs another `llava_main`, an emulated one for example.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from verifier.core.errors import RunnerError, UsageError
from verifier.runner.native import find_arm_binary, find_binary, find_phone
from verifier.runner.remote import LostError, OnTransfer, RemoteRunner, Said

CONNECT_S, KEEPALIVE_S, MISSED = 15.0, 10.0, 3
_CHUNK_BYTES = 1 << 20
Value = TypeVar("Value")


class SshLink:
    """A connection by asyncssh, its event loop in a thread of its own."""

    def __init__(self, host: str, user: str | None) -> None:
        self.host, self.user = host, user
        self._connection: asyncssh.SSHClientConnection | None = None
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        threading.Thread(target=self._loop.run_forever, daemon=True, name=f"ssh {host}").start()

    def connect(self) -> None:
        """Connect if there is no connection. Raises `RunnerError` for a host that is not the known one or lets nobody in."""
        with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = self._do(self._connect(), CONNECT_S * 2)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        options: dict[str, Any] = {"username": self.user} if self.user else {}
        try:
            return await asyncssh.connect(
                self.host,
                preferred_auth="publickey",
                connect_timeout=CONNECT_S,
                login_timeout=CONNECT_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=MISSED,
                **options,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            fix = f"make sure that it is the right machine, then: ssh-keygen -R {self.host}; ssh-keyscan {self.host} >> ~/.ssh/known_hosts"
            raise RunnerError("the host's key is not the known one", got=error, where=self.host, fix=fix) from error
        except asyncssh.PermissionDenied as error:
            fix = "let ssh log in without a password: ssh-copy-id, or an agent"
            raise RunnerError("the host accepts no key of yours", got=error, where=self.host, fix=fix) from error
        except (asyncssh.ConfigParseError, asyncssh.KeyImportError, ValueError) as error:
            raise RunnerError("ssh is not set up", got=error, where=self.host) from error

    def shell(self, command: str, *, timeout_s: float) -> Said:
        """Run a command by the login shell there."""

        async def ran() -> Said:
            done = await self._there.run(command, check=False, encoding="utf-8", errors="replace")
            if done.exit_status is None and done.exit_signal is None:
                raise LostError("the connection ended before the command did")
            status = 255 if done.exit_status is None else done.exit_status
            return Said(status, str(done.stdout or ""), str(done.stderr or ""))

        return self._do(ran(), timeout_s)

    def send(self, local: Path, remote: str, on_transfer: Callable[[int], None]) -> None:
        """Send a file by the shell's own `cat`, behind what is there of it already."""
        there = self.shell(f"wc -c < {remote} 2>/dev/null", timeout_s=60).out.strip()
        whole = local.stat().st_size
        begun = int(there) if there.isdigit() and int(there) <= whole else 0
        into = ">>" if begun else ">"

        async def sent() -> None:
            process = await self._there.create_process(f"cat {into} {remote}", encoding=None)
            with local.open("rb") as file, suppress(BrokenPipeError):  # the far end gave up: it says why when it ends
                file.seek(begun)
                done = begun
                while chunk := file.read(_CHUNK_BYTES):
                    process.stdin.write(chunk)
                    await process.stdin.drain()
                    done += len(chunk)
                    on_transfer(done)
                process.stdin.write_eof()
            await self._see_end(process, remote)

        self._do(sent(), None)

    def fetch(self, remote: str, local: Path) -> None:
        """Fetch a file by `cat`."""

        async def fetched() -> None:
            process = await self._there.create_process(f"cat {remote}", encoding=None)
            with local.open("wb") as file:
                while chunk := await process.stdout.read(_CHUNK_BYTES):
                    file.write(chunk)
            await self._see_end(process, remote)

        self._do(fetched(), None)

    async def _see_end(self, process: asyncssh.SSHClientProcess[bytes], remote: str) -> None:
        """Wait for a transfer's command. Raises `LostError`, or `RunnerError` in the command's own words."""
        ended = await process.wait()
        if ended.exit_status is None:
            raise LostError("the connection ended in a transfer")
        if ended.exit_status:
            raise _failed(ended.stderr, f"{remote} on {self.host}")

    def conditions(self) -> dict[str, float]:
        """What `llava_main` itself reports says it all."""
        return {}

    def close(self) -> None:
        """Hang up and end the thread."""
        if self._connection is not None:
            self._loop.call_soon_threadsafe(self._connection.abort)
        self._loop.call_soon_threadsafe(self._loop.stop)

    @property
    def _there(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise LostError("not connected")
        return self._connection

    def _do(self, act: Coroutine[Any, Any, Value], timeout_s: float | None) -> Value:
        """Have the loop do something; what ends a connection is one kind of error."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(act, timeout_s), self._loop)
        try:
            return future.result()
        except TimeoutError as error:
            raise LostError(f"no answer for {timeout_s:g} s") from error
        except (asyncssh.Error, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:  # on this side
                raise
            raise LostError(str(error) or type(error).__name__) from error
        except BaseException:
            future.cancel()
            raise


def _failed(said: bytes | str | None, where: str) -> RunnerError:
    errors = said.decode(errors="replace") if isinstance(said, bytes) else said or ""
    full = "No space left" in errors
    return RunnerError(
        "no space is left on the device" if full else "a file could not be transferred",
        got=errors.strip(),
        where=where,
        fix="free some there" if full else None,
    )


def _main_for(machine: str) -> Path:
    if machine in ("aarch64", "arm64"):
        named = "LLAVA_MAIN_AARCH64" in os.environ
        return find_arm_binary() if named else find_phone() or find_arm_binary()
    if machine in ("x86_64", "amd64"):
        return find_binary()
    raise RunnerError("no llava_main is built for this architecture", got=machine, expected="aarch64 or x86_64")


def make_ssh_runner(target: str, on_transfer: OnTransfer) -> RemoteRunner:
    """The runner of `ssh:[user@]host`, connected. Raises `UsageError` or `RunnerError` for all that can be wrong with it."""
    user, _, host = target.partition(":")[2].rpartition("@")
    if not host or host.startswith("-") or shlex.quote(host) != host or (user and shlex.quote(user) != user):
        raise UsageError("not a host", got=target, expected="ssh:[user@]host", fix="name it as in ~/.ssh/config")
    link = SshLink(host, user or None)
    runner = RemoteRunner(target, link, "$HOME/.cache/llava-verifier", on_transfer)
    try:
        runner.open(os.environ.get("LLAVA_SSH_COMMAND"), _main_for)
    except BaseException:
        link.close()
        raise
    return runner
