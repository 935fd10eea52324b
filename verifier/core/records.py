"""JSON records that this project writes and reads again: of bounded size, strict, of a known schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from verifier.core.errors import VerifierError

LIMIT_BYTES = 16 << 20
JsonObject = dict[str, Any]
"""A JSON object as `json` reads it."""
T = TypeVar("T")


def read_record(
    path: Path,
    parse: Callable[[JsonObject], T],
    *,
    what: str,
    error: type[VerifierError],
    schema: str = "",
    fix: str | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> T:
    """What `parse` makes of the JSON object in a file. Raises `error`, with `what` as its text, for a file that is missing, larger than
    `limit_bytes`, not strict JSON or of another `schema`, and for a field that is missing or of another kind; what else `parse`
    raises is its own."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > limit_bytes:
            raise ValueError(f"too large: {size_bytes:,} bytes, at most {limit_bytes:,} are read")
        record = json.loads(path.read_bytes(), parse_constant=_refuse)
        if not isinstance(record, dict):
            raise TypeError(f"a {type(record).__name__} is no JSON object")
        if schema and record["schema"] != schema:
            raise ValueError(f"schema {record['schema']!r}")
        return parse(record)
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RecursionError) as problem:
        got = f"no field {problem}" if isinstance(problem, KeyError) else problem
        expected = f"JSON of schema {schema}" if schema else "a JSON object"
        raise error(what, got=got, expected=expected, where=path, fix=fix) from problem


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
