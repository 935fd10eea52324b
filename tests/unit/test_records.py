"""Records are read whole or refused, with what was got, what was expected, where, and how to fix it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.core.errors import GoldenError
from verifier.core.records import read_record

SCHEMA = "verifier.test/1"
Parse = Callable[[dict[str, Any]], object]


def _read(path: Path, parse: Parse) -> object:
    return read_record(
        path,
        parse,
        what="the test cannot be read",
        error=GoldenError,
        schema=SCHEMA,
        fix="write it again",
        limit_bytes=100,
    )


def test_record_is_what_parse_makes_of_it(tmp_path: Path) -> None:
    """The object, schema included."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"schema": SCHEMA, "value": 3}))
    assert _read(path, lambda record: record["value"] + 1) == 4


@pytest.mark.parametrize(
    ("text", "parse", "got"),
    [
        ("{", dict, "Expecting property name"),
        ("[1]", dict, "a list is no JSON object"),
        ('{"schema": "other/9"}', dict, "schema 'other/9'"),
        ("{}", dict, "no field 'schema'"),
        (f'{{"schema": "{SCHEMA}", "x": NaN}}', dict, "NaN is no number of JSON"),
        ("[" * 99, dict, "Expecting value"),
        (" " * 101, dict, "too large: 101 bytes, at most 100 are read"),
        (f'{{"schema": "{SCHEMA}"}}', lambda record: record["value"], "no field 'value'"),
        (f'{{"schema": "{SCHEMA}"}}', lambda record: float(record["schema"]), "could not convert string to float"),
        (f'{{"schema": "{SCHEMA}"}}', lambda record: record["schema"].items(), "no attribute 'items'"),
    ],
)
def test_record_that_cannot_be_read_is_refused(tmp_path: Path, text: str, parse: Parse, got: str) -> None:
    """All five fields of the error."""
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(GoldenError) as caught:
        _read(path, parse)
    made = caught.value
    assert (made.what, made.where, made.fix) == ("the test cannot be read", path, "write it again")
    assert made.expected == f"JSON of schema {SCHEMA}"
    assert got in str(made.got)


def test_missing_record_is_refused(tmp_path: Path) -> None:
    """By the system's own words."""
    with pytest.raises(GoldenError, match="No such file"):
        _read(tmp_path / "none.json", dict)


def test_error_of_parse_is_its_own(tmp_path: Path) -> None:
    """A record of another checkpoint can be read; it is not this one's."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"schema": SCHEMA}))

    def parse(_record: dict[str, Any]) -> object:
        raise GoldenError("it belongs to another checkpoint")

    with pytest.raises(GoldenError, match=r"^it belongs to another checkpoint$"):
        _read(path, parse)
