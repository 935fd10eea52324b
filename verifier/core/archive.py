"""A frozen dataclass as a folder, and back: `record.json` by the annotations of its fields, and its arrays in `arrays.safetensors`.

Nothing in the folder is executed. Reading goes by the annotations of the class that is asked for: a value of another kind is an error that names
the field. Only NumPy and `safetensors` are needed.
"""

from __future__ import annotations

import json
import math
import shutil
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from verifier.core.errors import ArchiveError, UsageError
from verifier.core.records import JsonObject, read_record

RECORD, ARRAYS = "record.json", "arrays.safetensors"
RECORD_LIMIT_BYTES = 512 << 20
"""A verification of 7B writes some 10 MB."""
T = TypeVar("T")
Json = object
_HINTS: dict[type, dict[str, object]] = {}
_CLASS, _FLOAT, _ARRAY = "is", "float", "array"


class _Writer:
    """From values to JSON; arrays are set aside, each once."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._names: dict[int, str] = {}

    def write(self, hint: object, value: object, where: str) -> Json:
        """JSON of a value. Raises `TypeError` for one that is not what the annotation says."""
        kind = get_origin(hint) or hint
        if kind in (Union, types.UnionType):
            return self._union(hint, value, where)
        if kind is np.ndarray:
            return {_ARRAY: self._put(value, where)}
        if isinstance(hint, type) and is_dataclass(hint):
            return self._record(hint, value, where)
        if kind in (tuple, list, frozenset, Sequence):
            return self._items(hint, value, where)
        if kind in (dict, Mapping):
            return self._pairs(hint, value, where)
        return self._scalar(hint, value, where)

    def _union(self, hint: object, value: object, where: str) -> Json:
        if isinstance(value, np.generic):
            value = value.item()
        for each in get_args(hint):
            if _fits(each, value):
                return self.write(each, value, where)
        raise TypeError(f"{where} is a {type(value).__name__}, not {hint}")

    def _record(self, hint: type, value: object, where: str) -> Json:
        if type(value) is not hint:
            raise TypeError(f"{where} is a {type(value).__name__}, not a {hint.__name__}")
        hints = _hints(hint)
        named = {name: self.write(hints[name], getattr(value, name), f"{where}.{name}") for name in hints}
        return {_CLASS: hint.__name__, **named}

    def _items(self, hint: object, value: object, where: str) -> Json:
        if not isinstance(value, (tuple, list, frozenset)):
            raise TypeError(f"{where} is a {type(value).__name__}, not {hint}")
        given = sorted(value) if isinstance(value, frozenset) else value
        return [self.write(each, one, f"{where}[{at}]") for at, (each, one) in enumerate(_zipped(hint, given))]

    def _pairs(self, hint: object, value: object, where: str) -> Json:
        keys, values = get_args(hint) or (str, Any)
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} is a {type(value).__name__}, not {hint}")
        if keys is str:
            return {str(key): self.write(values, one, f"{where}[{key!r}]") for key, one in value.items()}
        return [
            [self.write(keys, key, f"a key of {where}"), self.write(values, one, f"{where}[{key!r}]")]
            for key, one in value.items()
        ]

    def _scalar(self, hint: object, value: object, where: str) -> Json:
        if isinstance(value, np.generic):
            value = value.item()
        if hint in (Any, object):
            return self._free(value, where)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise TypeError(f"{where} is {value!r}, not one of {get_args(hint)}")
            return value
        if isinstance(hint, type) and issubclass(hint, Enum) and isinstance(value, hint):
            return value.name
        if isinstance(hint, type) and issubclass(hint, Path) and isinstance(value, Path):
            return str(value)
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
        if hint in (int, str, bool, type(None)) and type(value) is hint:
            return value
        raise TypeError(f"{where} is a {type(value).__name__}, not {hint}")

    def _free(self, value: object, where: str) -> Json:
        """A value without an annotation: plain JSON, numbers that are not finite included."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return self._scalar(float, value, where)
        if isinstance(value, (list, tuple)):
            return [self._free(one, where) for one in value]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: self._free(one, f"{where}[{key!r}]") for key, one in value.items()}
        raise TypeError(f"{where} is a {type(value).__name__}, which is no plain data")

    def _put(self, value: object, where: str) -> str:
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise TypeError(f"{where} is a {type(value).__name__}, not an array of numbers")
        known = self._names.get(id(value))
        if known is None:
            known = self._names[id(value)] = str(len(self.arrays))
            self.arrays[known] = value
        return known


def _fits(hint: object, value: object) -> bool:
    """Whether a member of a union is meant for a value, by its class alone."""
    kind = get_origin(hint) or hint
    if kind in (Any, object):
        return True
    if kind is Literal:
        return value in get_args(hint)
    return (
        type(value) is kind if kind in (bool, int, float, str) else isinstance(kind, type) and isinstance(value, kind)
    )


def _zipped(hint: object, values: Sequence[object]) -> list[tuple[object, object]]:
    given = get_args(hint) or (Any, ...)
    if get_origin(hint) is tuple and Ellipsis not in given:
        if len(given) != len(values):
            raise TypeError(f"{len(values)} items, expected {len(given)}")
        return list(zip(given, values, strict=True))
    return [(given[0], value) for value in values]


def _hints(hint: type) -> dict[str, object]:
    """The annotations of a dataclass's fields, in their order."""
    if hint not in _HINTS:
        known = get_type_hints(hint)
        _HINTS[hint] = {field.name: known[field.name] for field in fields(hint)}
    return _HINTS[hint]


@dataclass(frozen=True)
class _Reader:
    """From JSON to values, by the annotations."""

    arrays: Any
    names: frozenset[str]

    def read(self, hint: object, data: Json, where: str) -> object:
        """The value of an annotation. Raises `TypeError` and `ValueError` for what is not of its kind."""
        kind = get_origin(hint) or hint
        if kind in (Union, types.UnionType):
            return self.read(_member(hint, data, where), data, where)
        if kind is np.ndarray:
            return self._array(data, where)
        if isinstance(hint, type) and is_dataclass(hint):
            return self._record(hint, data, where)
        if kind in (tuple, list, frozenset, Sequence):
            items = [self.read(each, one, where) for each, one in _zipped(hint, _of(list, data, where))]
            return items if kind is list else frozenset(items) if kind is frozenset else tuple(items)
        if kind in (dict, Mapping):
            return self._pairs(hint, data, where)
        return self._scalar(hint, data, where)

    def _array(self, data: Json, where: str) -> object:
        name = _of(dict, data, where)[_ARRAY]
        if name not in self.names:
            raise ValueError(f"{where} names an array that is not there")
        return self.arrays.get_tensor(name)

    def _record(self, hint: type, data: Json, where: str) -> object:
        given, hints = _of(dict, data, where), _hints(hint)
        if given.get(_CLASS) != hint.__name__ or given.keys() - {_CLASS} != hints.keys():
            odd = sorted((given.keys() - {_CLASS}) ^ hints.keys())
            raise ValueError(f"{where} is a {given.get(_CLASS)}, not a {hint.__name__} of this version: {odd}")
        return hint(**{name: self.read(each, given[name], f"{where}.{name}") for name, each in hints.items()})

    def _pairs(self, hint: object, data: Json, where: str) -> object:
        keys, values = get_args(hint) or (str, Any)
        if keys is str:
            return {key: self.read(values, one, f"{where}[{key!r}]") for key, one in _of(dict, data, where).items()}
        return {self.read(keys, key, where): self.read(values, one, where) for key, one in _of(list, data, where)}

    def _scalar(self, hint: object, data: Json, where: str) -> object:
        if hint in (Any, object):
            return _free(data)
        if get_origin(hint) is Literal:
            if data in get_args(hint):
                return data
        elif hint is float:
            if isinstance(data, dict):
                return float(data[_FLOAT])
            if isinstance(data, (int, float)) and not isinstance(data, bool):
                return float(data)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            return hint[_of(str, data, where)]
        elif isinstance(hint, type) and issubclass(hint, Path):
            return Path(_of(str, data, where))
        elif type(data) is hint:
            return data
        raise TypeError(f"{where} is {str(data)[:60]!r}, expected {hint}")


def _free(data: Json) -> object:
    if isinstance(data, dict):
        if data.keys() == {_FLOAT}:
            return float(data[_FLOAT])
        return {key: _free(one) for key, one in data.items()}
    return [_free(one) for one in data] if isinstance(data, list) else data


def _of(kind: type[T], data: Json, where: str) -> T:
    if not isinstance(data, kind):
        raise TypeError(f"{where} is a {type(data).__name__}, expected a {kind.__name__}")
    return data


def _member(hint: object, data: Json, where: str) -> object:
    """The member of a union that JSON was written by; a record is told from a dictionary by its class."""
    for each in sorted(get_args(hint), key=lambda member: not is_dataclass(member)):
        kind = get_origin(each) or each
        if isinstance(each, type) and is_dataclass(each):
            fits = isinstance(data, dict) and data.get(_CLASS) == each.__name__
        elif kind is np.ndarray:
            fits = isinstance(data, dict) and data.keys() == {_ARRAY}
        elif kind is float:
            fits = isinstance(data, float) or (isinstance(data, dict) and data.keys() == {_FLOAT})
        elif kind is Literal:
            fits = data in get_args(each)
        elif isinstance(kind, type) and issubclass(kind, (Path, Enum)):
            fits = isinstance(data, str)
        elif kind in (tuple, list, frozenset):
            fits = isinstance(data, list)
        elif kind in (Any, object):
            fits = True
        else:
            fits = type(data) is kind
        if fits:
            return each
    raise TypeError(f"{where} is {str(data)[:60]!r}, expected {hint}")


def require_free_folder(folder: Path) -> None:
    """Raise `UsageError` if an archive cannot be saved in a folder, before the work that makes it: because the folder holds anything but an earlier
    archive, which saving replaces, or cannot be written."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {RECORD, ARRAYS}):
        raise UsageError(
            "the folder holds other files, which saving would replace",
            got=folder,
            expected="a new folder, or one with an earlier archive alone, which is replaced",
            fix="give another folder",
        )
    with _written(folder):
        begun = _beside(folder, "begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        begun.rmdir()


def _beside(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.{state}")


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Raises `UsageError` for what keeps the block from writing."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(_beside(folder, "begun"), ignore_errors=True)
        fix = "check space and permissions, or give another folder"
        raise UsageError("the archive cannot be written", got=error, where=folder, fix=fix) from error


def save_archive(value: object, folder: Path, *, schema: str) -> None:
    """Write a frozen dataclass into a folder, whole or not at all; an earlier archive there is replaced. Raises `ArchiveError` for a field
    that is not data, `UsageError` if the folder cannot be written."""
    require_free_folder(folder)
    folder, writer = folder.resolve(), _Writer()
    try:
        record = {"schema": schema, "value": writer.write(type(value), value, type(value).__name__)}
    except TypeError as error:
        raise ArchiveError("a record cannot be saved", got=error, expected="values as their annotations say") from error
    begun, earlier = _beside(folder, "begun"), _beside(folder, "earlier")
    with _written(folder):
        begun.mkdir()
        (begun / RECORD).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        save_file({name: np.asarray(array, order="C") for name, array in writer.arrays.items()}, begun / ARRAYS)
        shutil.rmtree(earlier, ignore_errors=True)
        if folder.exists():
            folder.rename(earlier)
        begun.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def load_archive(folder: Path, kind: type[T], *, schema: str) -> T:
    """The value that `save_archive` wrote. Raises `ArchiveError` for a folder that is no such archive, or one of another version."""
    what = "the archive cannot be read"
    fix = "give a folder that --keep-evidence of this version wrote"

    def parse(record: JsonObject) -> T:
        with safe_open(folder / ARRAYS, framework="numpy") as arrays:
            return cast("T", _Reader(arrays, frozenset(arrays.keys())).read(kind, record["value"], kind.__name__))

    try:
        return read_record(
            folder / RECORD,
            parse,
            what=what,
            error=ArchiveError,
            schema=schema,
            fix=fix,
            limit_bytes=RECORD_LIMIT_BYTES,
        )
    except SafetensorError as error:
        raise ArchiveError(what, got=error, expected="arrays of numbers", where=folder / ARRAYS, fix=fix) from error
