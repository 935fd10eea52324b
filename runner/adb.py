"""The `adb[:serial]` target: `llava_main` on an Android phone, by the debug bridge's own server.

What is sent is the folder of `make phone`, which brings its own C library, or the `llava_main` of `LLAVA_MAIN_ANDROID`, built with the Android
NDK, its libraries beside it. Nothing is installed: all lies below `/data/local/tmp`, where a shell may run programs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import adbutils  # type: ignore[import-untyped]
from adbutils.errors import AdbConnectionError, AdbSyncError  # type: ignore[import-untyped]

from verifier.core.errors import RunnerError
from verifier.runner.native import find_phone
from verifier.runner.remote import LostError, OnTransfer, RemoteRunner, Said

HOME, REFUSED = "/data/local/tmp/llava-verifier", "FAIL"
_STATES = {
    "unauthorized": ("the phone does not trust this computer", "unlock it and accept the key that it shows"),
    "offline": ("the phone does not answer", "plug it in again, or: adb reconnect"),
}


@contextmanager
def _named(serial: str) -> Iterator[None]:
    """adbutils' errors as ours: a phone that is gone may come back, anything else is the user's to mend."""
    try:
        yield
    except AdbConnectionError as error:
        fix = "start it: adb start-server (Debian's package adb)"
        raise RunnerError("the adb server cannot be reached", got=error, fix=fix) from error
    except AdbSyncError as error:
        raise RunnerError("a file could not be transferred", got=error, where=serial) from error
    except (adbutils.AdbTimeout, adbutils.AdbError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:  # on this side
            raise
        raise LostError(str(error) or type(error).__name__) from error


class AdbLink:
    """One phone. The server keeps the connection; here it is looked for again after every loss."""

    def __init__(self, client: adbutils.AdbClient, serial: str) -> None:
        self.client, self.serial = client, serial
        self.phone = client.device(serial)

    def connect(self) -> None:
        """See that the phone is there and lets us in. Raises `RunnerError` that says what to do at the phone."""
        with _named(self.serial):
            states = {info.serial: info.state for info in self.client.list()}
        state = states.get(self.serial, "not connected")
        if state in _STATES:
            what, fix = _STATES[state]
            raise RunnerError(what, got=f"{self.serial}: {state}", fix=fix)
        if state != "device":
            raise LostError(f"{self.serial} is {state}")

    def shell(self, command: str, *, timeout_s: float) -> Said:
        """Run a command by the phone's shell."""
        with _named(self.serial):
            done = self.phone.shell2(command, timeout=timeout_s, v2=True)
        return Said(int(done.returncode), str(done.stdout or done.output), str(done.stderr))

    def send(self, local: Path, remote: str, on_transfer: Callable[[int], None]) -> None:
        """Send a file by the sync service, which always begins at the beginning."""
        with _named(self.serial), local.open("rb") as file:
            try:
                self.phone.sync.push(_Watched(file, on_transfer), remote, mode=0o644)
            except adbutils.AdbError as error:
                if str(error) != REFUSED:
                    raise
                fix = f"look at the space in {HOME}, and whether it can be written"  # adbutils does not say why
                raise RunnerError("the phone refused a file", got=remote, where=self.serial, fix=fix) from error

    def fetch(self, remote: str, local: Path) -> None:
        """Fetch a file by the sync service."""
        with _named(self.serial), local.open("wb") as file:
            for chunk in self.phone.sync.iter_content(remote):
                file.write(chunk)

    def conditions(self) -> dict[str, float]:
        """Android's thermal status: 0 none, 1 light, 2 moderate, 3 severe, 4 critical, 5 emergency, 6 shutdown."""
        said = self.shell("dumpsys thermalservice 2>/dev/null", timeout_s=30).out
        found = re.search(r"Thermal Status: (\d)", said)
        return {"thermal_status": float(found.group(1))} if found else {}

    def close(self) -> None:
        """The server stays as it is."""


class _Watched:
    """A file that says how far it was read."""

    def __init__(self, file: BinaryIO, on_transfer: Callable[[int], None]) -> None:
        self.file, self.on_transfer, self.done = file, on_transfer, 0

    def read(self, size: int) -> bytes:
        """The next bytes."""
        chunk = self.file.read(size)
        self.done += len(chunk)
        self.on_transfer(self.done)
        return chunk

    def close(self) -> None:
        """Whoever opened the file closes it."""


def find_android_main() -> Path:
    """The `llava_main` of `LLAVA_MAIN_ANDROID`, or the one in the folder of `make phone`. Raises `RunnerError`."""
    named = os.environ.get("LLAVA_MAIN_ANDROID")
    path = Path(named) if named else find_phone()
    if path is None or not path.is_file():
        raise RunnerError(
            "no llava_main for Android",
            got=named or "LLAVA_MAIN_ANDROID is not set, and there is no folder for phones",
            fix="run python -m verifier.runner.native.phone (in a clone make phone; needs g++-aarch64-linux-gnu), or set LLAVA_MAIN_ANDROID",
        )
    return path


def choose_phone(client: adbutils.AdbClient, wanted: str) -> str:
    """The serial number of the phone that is meant. Raises `RunnerError` for none, and for one of several."""
    with _named("adb"):
        found: dict[str, str] = {info.serial: info.state for info in client.list()}
    listed = ", ".join(f"{serial} ({state})" for serial, state in found.items()) or "none"
    if wanted:
        if wanted not in found:
            raise RunnerError("this phone is not connected", got=wanted, expected=listed, fix="see: adb devices")
        return wanted
    if not found:
        fix = "plug one in with USB debugging switched on, then see: adb devices"
        raise RunnerError("no phone is connected", got=listed, fix=fix)
    if len(found) > 1:
        raise RunnerError("several phones are connected", got=listed, fix="give --target adb:SERIAL")
    return next(iter(found))


def make_adb_runner(target: str, on_transfer: OnTransfer) -> RemoteRunner:
    """The runner of `adb` or `adb:serial`, connected. Raises `RunnerError` for all that can be wrong with it."""
    binary = find_android_main()
    client = adbutils.AdbClient()
    link = AdbLink(client, choose_phone(client, target.partition(":")[2]))
    runner = RemoteRunner(target, link, HOME, on_transfer)
    runner.open(None, lambda machine: binary)
    return runner
