"""Answers of the fp32 reference that are kept in the user's cache: a small JSON file for each, named by a hash of all that the answer depends on.

A kept answer is never taken on trust: what is in the file decides how much is computed, not what is right. Whoever uses one holds it against
the reference, as golden answers are.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from verifier.core.files import replacing
from verifier.core.records import JsonObject

SCHEMA = "verifier.answer/1"
ENTRY_BYTES, ENTRIES = 1 << 16, 256
"""What an entry may take, and how many are kept: 16 MiB at most. One of 20 tokens takes 300 bytes."""


def key_of(depends_on: JsonObject) -> str:
    """SHA-256 in hex of what an answer depends on, in any order."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class KeptAnswers:
    """The answers in a folder. One that was used or written last goes last when there are too many."""

    folder: Path

    def read(self, key: str, *, vocabulary: int, ends: tuple[int, ...], room: int) -> tuple[int, ...] | None:
        """The ids of an answer; None if there is none, or if the file cannot be one: too large, damaged, no regular file, of another key, with
        ids that are no tokens, or an answer that does not end where answers end."""
        path = self._path(key)
        try:
            record = json.loads(_read_regular(path))
            ids = record["ids"]
            if (record["schema"], record["key"]) != (SCHEMA, key) or record["sha256"] != _digest(key, ids):
                return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        if not _is_answer(ids, vocabulary=vocabulary, ends=ends, room=room):
            return None
        with suppress(OSError):
            os.utime(path)
        return tuple(ids)

    def write(self, key: str, ids: tuple[int, ...]) -> None:
        """Keep an answer, whole or not at all, and remove the oldest ones beyond `ENTRIES`. Raises `UsageError` if the folder cannot be written."""
        record = {"schema": SCHEMA, "key": key, "ids": list(ids), "sha256": _digest(key, list(ids))}
        with replacing(self._path(key)) as temporary:
            temporary.write_text(json.dumps(record) + "\n")
        self._remove_oldest()

    def remove(self, key: str) -> None:
        """Forget an answer."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Let one process at a time compute an answer: the others find it. Does not wait where nothing can be written."""
        lock: FileLock | None = None
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(self.folder / f"computing-{key[0]}.lock")  # 16 files in all
            lock.acquire()
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _remove_oldest(self) -> None:
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError):
                found.append((path.lstat().st_mtime_ns, path))
        for _, path in sorted(found)[: max(0, len(found) - ENTRIES)]:
            with suppress(OSError):
                path.unlink()


def _read_regular(path: Path) -> bytes:
    """The bytes of a file of bounded size; no link is followed, and no pipe or device is waited for. Raises `OSError`, `ValueError`."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("no regular file")
        data = file.read(ENTRY_BYTES + 1)
    if len(data) > ENTRY_BYTES:
        raise ValueError("too large")
    return data


def _digest(key: str, ids: object) -> str:
    return hashlib.sha256(json.dumps([key, ids]).encode()).hexdigest()


def _is_answer(ids: object, *, vocabulary: int, ends: tuple[int, ...], room: int) -> bool:
    """Whether these are tokens that end where an answer of at most `room` tokens ends, and not before."""
    if not isinstance(ids, list) or not 1 <= len(ids) <= room:
        return False
    if any(type(token) is not int or not 0 <= token < vocabulary for token in ids):
        return False
    first_end = next((place for place, token in enumerate(ids) if token in ends), room - 1)
    return len(ids) == first_end + 1
