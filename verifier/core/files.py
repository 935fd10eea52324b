"""Files: written so that nothing half-written is left under its final name, and recognized where something else stands in their place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifier.core.errors import UsageError, VerifierError

_HEAD_BYTES = 512
_STAND_INS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"),
        "a Git LFS pointer",
        "fetch the contents: git lfs install && git lfs pull, or download the file itself",
    ),
    (
        (b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/"),
        "a git-annex pointer",
        "fetch the contents: git annex get, or download the file itself",
    ),
    (
        (b"<!doctype html", b"<html"),
        "an HTML page",
        "download the file again: the server sent a page (a login, a redirect or an error) in its place",
    ),
)
"""How each begins, in lower case; what it is; how to get the file itself. Git LFS: github.com/git-lfs/git-lfs, docs/spec.md."""


def refuse_stand_in(path: Path, error: type[VerifierError]) -> None:
    """Raise `error` if a file holds something that was put in its place: a pointer of Git LFS or git-annex, or an HTML page.

    Passes what is missing or cannot be read: whoever reads it says so.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError:
        return
    for beginnings, what, fix in _STAND_INS:
        if head.startswith(beginnings):
            first_line = head.split(b"\n", 1)[0][:80].decode("ascii", errors="replace")
            raise error(
                f"{path.name} is {what}, not the file itself",
                got=f"{first_line!r}, {path.stat().st_size:,} bytes",
                expected="the contents of the file",
                where=path,
                fix=fix,
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises `UsageError` if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise UsageError(
            "the output cannot be written",
            got=error,
            where=path,
            expected="a folder that can be written",
            fix="give another path",
        ) from error
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            "the output cannot be written", got=error, where=path, fix="check space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


_HASH_BLOCK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
