"""A bundle on another machine. The program is sent once and found again by its hash; everything else is removed.

What a connection can do is a `Link`; ssh and adb have one each. `llava_main` runs at the other end, under `timeout`.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shlex
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from verifier.core.errors import RunnerError
from verifier.runner.exchange import Ending, exchange
from verifier.runner.native import is_portable, start_words
from verifier.runner.process import LONGEST_S
from verifier.runner.protocol import Bundle, Result, program_hash

OnTransfer = Callable[[str, int, int], None]
"""Called during a transfer with the name of the file, the bytes sent and the bytes in all."""
Value = TypeVar("Value")
WAITS_S = (1.0, 3.0)
"""How long to wait before a lost connection is made again; once for each further try."""
STALE_DAYS = 7
LARGEST_RESULT_BYTES = 1 << 34
TIMED_OUT, FIRST_SIGNAL, NOT_RUNNABLE, NOT_FOUND = (124, 137), 128, 126, 127
GRACE_S = 30.0


class LostError(Exception):
    """The connection is gone: what was under way may or may not have happened."""


@dataclass(frozen=True)
class Said:
    """What a command at the other end said, and its exit status."""

    status: int
    out: str
    errors: str


class Link(Protocol):
    """A connection. Everything raises `LostError` if it is gone, and `RunnerError` for what trying again does not help."""

    def connect(self) -> None:
        """Connect, again if need be."""
        ...

    def shell(self, command: str, *, timeout_s: float) -> Said:
        """Run a command by the shell there."""
        ...

    def send(self, local: Path, remote: str, on_transfer: Callable[[int], None]) -> None:
        """Send a file; a part of it that is there already may be kept."""
        ...

    def fetch(self, remote: str, local: Path) -> None:
        """Fetch a file."""
        ...

    def conditions(self) -> dict[str, float]:
        """What is worth knowing of the machine's state, with units in the names."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


@dataclass
class RemoteRunner:
    """Carries out bundles over a link, in a folder `home` of its own there, which the shell there may expand."""

    name: str
    link: Link
    home: str
    on_transfer: OnTransfer = lambda what, done, whole: None
    command: str = ""
    isa: str = ""
    _sent: dict[str, Path] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def at_once(self) -> int:
        """One: a phone has the memory for one program, and its times are to be its own."""
        return 1

    def open(self, command: str | None, find_main: Callable[[str], Path]) -> None:
        """Connect, and find out what runs there: `command`, or `llava_main` for the architecture there, which is sent.

        Raises `RunnerError` for all that can be wrong with that.
        """
        self.home = _plain_path(self._again("connecting", lambda: self._shell(f"echo {self.home}")).out.strip())
        stale = (
            f"find {self.home} -mindepth 2 -maxdepth 2 -mtime +{STALE_DAYS} -exec rm -rf {{}} + 2>/dev/null; uname -m"
        )
        machine = self._again("asking", lambda: self._shell(stale)).out.strip()
        self.command = command or self._again("sending llava_main", lambda: self._install(find_main(machine)))
        said = self._again("asking", lambda: self.link.shell(f"{self.command} --about", timeout_s=120))
        try:
            self.isa = str(json.loads(said.out)["isa"])
        except (ValueError, KeyError, TypeError) as error:
            got = (said.errors or said.out).strip()[-400:] or f"exit status {said.status}"
            fix = f"it is a {machine} machine: give a llava_main for it, with its libraries beside it"
            raise RunnerError("llava_main does not run there", got=got, where=self.name, fix=fix) from error

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `exchange`. Raises `RunnerError` also if the connection is lost for good."""
        limit_s = min(timeout_s, LONGEST_S)

        def carry(sent: Path, back: Path) -> Ending:
            packed = sent.with_name("bundle.tar")
            _pack(sent, packed)
            token = secrets.token_hex(8)
            return self._again(
                "a bundle", lambda: self._carry(bundle, packed, back, f"{self.home}/run/{token}", limit_s)
            )

        result = exchange(bundle, carry, timeout_s=limit_s)
        return replace(result, conditions=result.conditions | self._again("asking", self.link.conditions))

    def close(self) -> None:
        """Remove programs there that no longer exist here, such as copies of one for a probe, and hang up."""
        gone = [digest for digest, path in self._sent.items() if not path.is_file()]
        with suppress(RunnerError, LostError):
            if gone:
                self.link.shell("rm -f " + " ".join(self._program_place(digest) for digest in gone), timeout_s=60)
        self.link.close()

    def _carry(self, bundle: Bundle, packed: Path, back: Path, place: str, timeout_s: float) -> Ending:
        program = self._program(bundle.pte)
        try:
            self._remove(place)  # of a try whose connection was lost
            self._shell(f"mkdir -p {place}/bundle {place}/result")
            self.link.send(packed, f"{place}/bundle.tar", lambda done: None)
            self._shell(f"tar -xf {place}/bundle.tar -C {place}/bundle && rm {place}/bundle.tar")
            begun = time.monotonic()
            said = self.link.shell(self._command_line(bundle, program, place, timeout_s), timeout_s=timeout_s + GRACE_S)
            if said.status in (NOT_RUNNABLE, NOT_FOUND):
                raise RunnerError("llava_main cannot be started there", got=said.errors.strip(), where=self.name)
            late = time.monotonic() - begun >= timeout_s and said.status in TIMED_OUT
            self._shell(f"cd {place} && tar -cf result.tar -C result .", timeout_s=600)
            self._fetch_result(place, back)
        finally:
            with suppress(RunnerError, LostError):
                self._remove(place)
        status = FIRST_SIGNAL - said.status if said.status > FIRST_SIGNAL else said.status
        return Ending(None if late else status, said.errors)

    def _command_line(self, bundle: Bundle, program: str, place: str, timeout_s: float) -> str:
        """The shell's process number is kept, so that what still runs can be ended; `timeout` is there if nobody comes."""
        limit = "" if bundle.memory_bytes is None else f"ulimit -d {bundle.memory_bytes // 1024}; "
        words = f"{self.command} --bundle={place}/bundle --result={place}/result --model_path={program}"
        return f"echo $$ > {place}/pid; {limit}timeout -s KILL {math.ceil(timeout_s)} {words} < /dev/null > /dev/null"

    def _remove(self, place: str) -> None:
        """End what still runs for a bundle and remove its folder."""
        ended = f'p=$(cat {place}/pid 2>/dev/null) && for c in $(pgrep -P "$p"); do pkill -KILL -P "$c"; kill -KILL "$c"; done'
        self._shell(f"{{ {ended}; }} 2>/dev/null; rm -rf {place}")

    def _fetch_result(self, place: str, back: Path) -> None:
        size = int(self._shell(f"wc -c < {place}/result.tar").out.strip() or 0)
        if size > LARGEST_RESULT_BYTES:
            raise RunnerError("a result that is too large", got=f"{size} bytes", expected=LARGEST_RESULT_BYTES)
        packed = back.with_name("result.tar")
        self.link.fetch(f"{place}/result.tar", packed)
        try:
            with tarfile.open(packed) as archive:
                archive.extractall(back, filter="data")  # plain files inside the folder, nothing else
        except tarfile.TarError as error:
            raise RunnerError("the result arrived damaged", got=error, where=self.name) from error
        packed.unlink()

    def _program_place(self, digest: str) -> str:
        return f"{self.home}/programs/{digest}.pte"

    def _program(self, pte: Path) -> str:
        """Where a program lies there: found by its hash, or sent. Its bytes are hashed there once in a session."""
        digest = program_hash(pte)
        place = self._program_place(digest)
        with self._lock:
            if digest not in self._sent:
                if self._hash(place) != digest:
                    self._send_whole(pte, place, digest)
                self._sent[digest] = pte.resolve()
        return place

    def _send_whole(self, local: Path, place: str, digest: str) -> None:
        """Send a file beside its place, check it there, and move it: twice at most, since a part may be of something else."""
        whole, part = local.stat().st_size, f"{place}.part"
        folder = place.rpartition("/")[0]
        self._shell(f"mkdir -p {folder}")
        self._see_room(folder, whole)
        for _ in range(2):
            self.link.send(local, part, lambda done: self.on_transfer(local.name, done, whole))
            arrived = self._hash(part)
            if arrived == digest:
                self._shell(f"mv {part} {place}")
                return
            self._shell(f"rm -f {part}")
        raise RunnerError(
            "a file arrives damaged",
            got=f"SHA-256 {arrived or 'of nothing'}",
            expected=digest,
            where=f"{part} on {self.name}",
            fix="check the connection and the space there",
        )

    def _see_room(self, folder: str, needed_bytes: int) -> None:
        """Raise `RunnerError` if a file would not fit: better now than after gigabytes."""
        words = self.link.shell(f"df -Pk {folder}", timeout_s=60).out.splitlines()[-1:]
        free = words[0].split()[3:4] if words else []
        if free and free[0].isdigit() and int(free[0]) * 1024 < needed_bytes:
            raise self._full(f"{int(free[0]) / 1024:.0f} MiB", f"{needed_bytes / 2**20:.0f} MiB")

    def _full(self, got: str, expected: str | None = None) -> RunnerError:
        fix = f"free some: {self.home} may be removed"
        return RunnerError("no space is left on the device", got=got, expected=expected, where=self.name, fix=fix)

    def _hash(self, place: str) -> str:
        said = self.link.shell(f"test -f {place} && touch {place} && sha256sum {place}", timeout_s=1200)
        return said.out.split()[0] if said.status == 0 and said.out.split() else ""

    def _install(self, binary: Path) -> str:
        """Send `llava_main` and its libraries, from beside it or from the folder that it is portable with; the command that runs it there."""
        portable = is_portable(binary)
        libraries = sorted((binary.parent / "lib").iterdir() if portable else binary.parent.glob("lib*.so*"))
        files = {"llava_main": binary} | {str(file.relative_to(binary.parent)): file for file in libraries}
        digests = {name: program_hash(file) for name, file in files.items()}
        place = f"{self.home}/bin/{hashlib.sha256(''.join(digests.values()).encode()).hexdigest()[:16]}"
        for name, file in files.items():
            if self._hash(f"{place}/{name}") != digests[name]:
                self._send_whole(file, f"{place}/{name}", digests[name])
        words = start_words(f"{place}/llava_main", portable=portable)
        self._shell(f"chmod 755 {place}/llava_main {words[0]}")
        return f"env LD_PRELOAD= {'' if portable else f'LD_LIBRARY_PATH={place} '}{' '.join(words)}"

    def _shell(self, command: str, *, timeout_s: float = 60.0) -> Said:
        said = self.link.shell(command, timeout_s=timeout_s)
        if said.status != 0:
            got = said.errors.strip() or f"exit status {said.status}"
            raise (
                self._full(got)
                if "No space left" in got
                else RunnerError("a command failed there", got=got, where=self.name)
            )
        return said

    def _again(self, what: str, act: Callable[[], Value]) -> Value:
        """Do something, with a new connection after a lost one."""
        for wait_s in (*WAITS_S, None):
            try:
                self.link.connect()
                return act()
            except LostError as error:
                if wait_s is None:
                    raise RunnerError(
                        "the connection was lost",
                        got=error,
                        where=f"{self.name}, {what}",
                        fix="check the machine and the network, then run again: what was sent is found there",
                    ) from error
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def _pack(folder: Path, packed: Path) -> None:
    with tarfile.open(packed, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)


def _plain_path(path: str) -> str:
    """A folder as it can stand in commands. Raises `RunnerError` for one that would have to be quoted."""
    if not path.startswith("/") or shlex.quote(path) != path:
        raise RunnerError("the home folder there has a name that cannot be used", got=path)
    return path
