"""A session that grows by one line for each answer. `runner/native/src/record.cpp` does the same in C++."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verifier.core.errors import SessionError
from verifier.runner.protocol import Array

_ANOTHER_PATH = "give --record another path"


@dataclass(frozen=True)
class SessionFile:
    """A session of one runtime, program and tokenizer, which its `head` names."""

    path: Path
    head: Mapping[str, object]

    def check(self) -> None:
        """Raise `SessionError` unless lines can be appended. The file is made, empty, if there is none."""
        folder = self.path.parent
        if self.path.exists() and not self.path.is_file():
            raise SessionError("the session cannot be written", got="no plain file", where=self.path, fix=_ANOTHER_PATH)
        try:
            with self.path.open("a+b") as file:
                file.seek(0)
                self._check_old(file.read())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if not os.access(folder, os.W_OK):
            raise _unwritable(folder, "no right to write beside the session, where pixels go")

    def _check_old(self, data: bytes) -> None:
        if not data:
            return
        first = data.partition(b"\n")[0]
        try:
            found = json.loads(first)
        except (ValueError, RecursionError):
            found = first[:60]
        if found != self.head:
            raise SessionError(
                "the session is of another runtime, program or tokenizer",
                got=found,
                expected=json.dumps(self.head),
                where=self.path,
                fix=_ANOTHER_PATH,
            )
        if not data.endswith(b"\n"):
            raise SessionError(
                "the session ends in the middle of a line",
                got="no line break at its end",
                expected="whole lines",
                where=self.path,
                fix=_ANOTHER_PATH,
            )

    def append(self, turn: Mapping[str, object]) -> None:
        """Write a line whole, the head before the first one. Raises `SessionError`; the file is then as it was."""
        try:
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                fcntl.flock(number, fcntl.LOCK_EX)
                before = os.fstat(number).st_size
                lines = [turn] if before else [self.head, turn]
                data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
                _write_whole(number, data, before)
            finally:
                os.close(number)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def save_pixels(self, pixels: Array) -> str:
        """Write pixels uint8 [3, h, w] beside the session, under a name that is their hash; the same ones once. Raises `SessionError`."""
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(pixels))
        data = content.getvalue()
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        path = self.path.with_name(f"{self.path.stem}-{digest}.npy")
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            if not path.exists():
                temporary.write_bytes(data)
                temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _unwritable(path, error) from error
        return path.name


def _write_whole(number: int, data: bytes, before: int) -> None:
    try:
        if os.write(number, data) != len(data):
            raise OSError("the disk is full")
    except OSError:
        os.ftruncate(number, before)
        raise


def _unwritable(path: Path, error: object) -> SessionError:
    return SessionError(
        "the session cannot be written",
        got=error,
        expected="a path in an existing folder that can be written",
        where=path,
        fix=_ANOTHER_PATH,
    )
