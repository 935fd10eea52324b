"""Writing files so that nothing half-written is ever left under its final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifier.errors import UsageError


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
