"""Frozen dataclasses as a folder: everything comes back as it was, and nothing is taken for what it is not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors import SafetensorError

from verifier.core import archive
from verifier.core.archive import ARRAYS, RECORD, load_archive, require_free_folder, save_archive
from verifier.core.errors import ArchiveError, UsageError
from verifier.runner.protocol import Array

SCHEMA = "test/1"


class Colour(Enum):
    """An enumeration."""

    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    """A record inside another."""

    array: Array | None
    place: tuple[int, ...] = ()


@dataclass(frozen=True)
class Other:
    """Another one."""

    text: str


@dataclass(frozen=True)
class Outer:
    """One field of every kind that is allowed."""

    number: float
    either: Inner | Other
    by_place: dict[tuple[int, int], Inner]
    scalar: int | float | bool | str | None
    colour: Colour
    path: Path
    words: frozenset[str]
    pair: tuple[int, str]
    kind: Literal["a", "b"]
    by_name: dict[str, Other] | Other
    free: dict[str, Any] = field(default_factory=dict)


def _outer(**fields: Any) -> Outer:
    given: dict[str, Any] = {
        "number": math.nan,
        "either": Other("text"),
        "by_place": {(1, 2): Inner(np.arange(6, dtype=np.float64).reshape(2, 3), (3,)), (0, 0): Inner(None)},
        "scalar": True,
        "colour": Colour.BLUE,
        "path": Path("a/b"),
        "words": frozenset(("x", "y")),
        "pair": (1, "one"),
        "kind": "a",
        "by_name": {"a": Other("text")},
        "free": {"nested": [1, None, {"deep": -math.inf}]},
    }
    return Outer(**(given | fields))


@pytest.mark.parametrize("scalar", [True, 1, 1.0, "1", None, np.int64(3)])
def test_every_kind_of_field_comes_back(tmp_path: Path, scalar: Any) -> None:
    """Bits of arrays, numbers that are not finite, keys that are tuples, and 1, 1.0 and true apart."""
    save_archive(_outer(scalar=scalar), tmp_path / "kept", schema=SCHEMA)
    back = load_archive(tmp_path / "kept", Outer, schema=SCHEMA)
    wanted = scalar.item() if isinstance(scalar, np.generic) else scalar
    assert back.scalar == wanted and type(back.scalar) is type(wanted)
    assert math.isnan(back.number) and back.free == {"nested": [1, None, {"deep": -math.inf}]}
    array = back.by_place[1, 2].array
    assert array is not None and array.dtype == np.float64 and array.tolist() == [[0, 1, 2], [3, 4, 5]]
    same = ("either", "colour", "path", "words", "pair", "kind")
    assert [getattr(back, name) for name in same] == [getattr(_outer(), name) for name in same]
    assert back.by_place[0, 0] == Inner(None)


@pytest.mark.parametrize("either", [{}, {"a": Other("text")}, Other("text")])
def test_a_record_is_told_from_a_dictionary(tmp_path: Path, either: Any) -> None:
    """Both are objects in JSON."""
    save_archive(_outer(by_name=either), tmp_path / "kept", schema=SCHEMA)
    assert load_archive(tmp_path / "kept", Outer, schema=SCHEMA).by_name == either


@pytest.mark.parametrize("array", [np.zeros(()), np.zeros((0, 4), np.int8), np.array([np.nan, np.inf], np.float16)])
def test_arrays_keep_shape_type_and_bits(tmp_path: Path, array: Any) -> None:
    """No axis, no element, and numbers that are not finite."""
    save_archive(Inner(array), tmp_path / "kept", schema=SCHEMA)
    back = load_archive(tmp_path / "kept", Inner, schema=SCHEMA).array
    assert back is not None and (back.shape, back.dtype) == (array.shape, array.dtype)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"either": object()}, "Outer.either is a object"),
        ({"by_place": {(1, 2): Inner(np.array([object()]))}}, "Outer.by_place[(1, 2)].array is a ndarray"),
        ({"number": lambda: 1.0}, "Outer.number is a function"),
        ({"kind": "c"}, "Outer.kind is 'c'"),
        ({"free": {"closure": print}}, "Outer.free['closure'] is a builtin_function_or_method"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    """The field, and what stands in it; nothing is left behind."""
    with pytest.raises(ArchiveError) as error:
        save_archive(_outer(**fields), tmp_path / "kept", schema=SCHEMA)
    assert named in str(error.value)
    assert list(tmp_path.iterdir()) == []


def _changed(folder: Path, name: str, value: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    record["value"][name] = value
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("number", "1", "Outer.number is '1'"),
        ("either", {"is": "Path", "text": "x"}, "Outer.either"),
        ("either", {"is": "Other", "text": "x", "more": 1}, "not a Other of this version: ['more']"),
        ("colour", "GREEN", "GREEN"),
        (
            "by_place",
            [[[1, 2], {"is": "Inner", "array": {"array": "../7"}, "place": []}]],
            "an array that is not there",
        ),
        ("pair", [1], "1 items, expected 2"),
        ("words", "xy", "Outer.words is a str"),
    ],
)
def test_a_changed_record_is_refused(tmp_path: Path, name: str, value: Any, named: str) -> None:
    """By the field, whatever stands there."""
    folder = tmp_path / "kept"
    save_archive(_outer(), folder, schema=SCHEMA)
    _changed(folder, name, value)
    with pytest.raises(ArchiveError) as error:
        load_archive(folder, Outer, schema=SCHEMA)
    assert named in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_damaged_arrays_are_refused(tmp_path: Path, damage: str) -> None:
    """A file that was cut off, another file, and none."""
    folder = tmp_path / "kept"
    save_archive(_outer(), folder, schema=SCHEMA)
    path = folder / ARRAYS
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"not an archive of arrays")
    with pytest.raises(ArchiveError):
        load_archive(folder, Outer, schema=SCHEMA)


def test_another_schema_and_no_folder_are_refused(tmp_path: Path) -> None:
    """What a later version wrote, and what is not there."""
    save_archive(_outer(), tmp_path / "kept", schema=SCHEMA)
    for folder, schema in ((tmp_path / "kept", "test/2"), (tmp_path / "none", SCHEMA)):
        with pytest.raises(ArchiveError):
            load_archive(folder, Outer, schema=schema)


def test_only_an_earlier_archive_is_replaced(tmp_path: Path) -> None:
    """A folder of something else stays as it was."""
    folder = tmp_path / "kept"
    save_archive(_outer(kind="a"), folder, schema=SCHEMA)
    save_archive(_outer(kind="b"), folder, schema=SCHEMA)
    assert load_archive(folder, Outer, schema=SCHEMA).kind == "b"
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(UsageError):
        save_archive(_outer(), other, schema=SCHEMA)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_record_beside_other_files_is_not_replaced(tmp_path: Path) -> None:
    """A folder that happens to hold a record.json is not an archive: its other files stay."""
    save_archive(_outer(kind="a"), tmp_path / "kept", schema=SCHEMA)
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError):
        save_archive(_outer(kind="b"), tmp_path / "kept", schema=SCHEMA)
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"
    assert load_archive(tmp_path / "kept", Outer, schema=SCHEMA).kind == "a"


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """Its parent is a file; nothing is left beside it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        require_free_folder(tmp_path / "file" / "kept")
    require_free_folder(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_archive_that_cannot_be_finished_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while arrays are written."""
    save_archive(_outer(kind="a"), tmp_path / "kept", schema=SCHEMA)

    def full(*_given: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(archive, "save_file", full)
    with pytest.raises(UsageError):
        save_archive(_outer(kind="b"), tmp_path / "kept", schema=SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert load_archive(tmp_path / "kept", Outer, schema=SCHEMA).kind == "a"
