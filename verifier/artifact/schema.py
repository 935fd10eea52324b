"""FlatBuffer schemas, as the ExecuTorch wheel ships them, in the form that the reader needs.

Only what these schemas use: tables, enums, unions and includes (https://flatbuffers.dev/schema). The order of a table's
fields gives their slots; a union takes two, its type and its value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from verifier.core import upstream
from verifier.core.errors import VerifierError

SCALARS = {
    "bool": "?",
    "byte": "b",
    "ubyte": "B",
    "short": "h",
    "ushort": "H",
    "int": "i",
    "uint": "I",
    "long": "q",
    "ulong": "Q",
    "float": "f",
    "double": "d",
    "uint8": "B",
    "int64": "q",
    "uint64": "Q",
    "uint32": "I",
}
"""Name in a schema -> code of `struct`, little endian."""
_BLOCK = re.compile(r"\b(table|enum|union)\s+(\w+)\s*(?::\s*(\w+)\s*)?\{(.*?)\}", re.S)
_FIELD = re.compile(r"(\w+)\s*:\s*(\[?[\w.]+\]?)\s*(?:=\s*([\w.+-]+))?\s*(?:\([^)]*\))?\s*;")


@dataclass(frozen=True)
class Field:
    """One field: its slot in the vtable, its type as spelled (`[int]` is a vector), and its default."""

    name: str
    slot: int
    type: str
    default: str | None


@dataclass(frozen=True)
class Schema:
    """Tables by name; enums as (scalar type, number -> name); unions as number -> (name, table)."""

    tables: dict[str, tuple[Field, ...]]
    enums: dict[str, tuple[str, dict[int, str]]]
    unions: dict[str, dict[int, tuple[str, str]]]


def parse_schema(text: str) -> Schema:
    """Parse the text of a `.fbs` file. Raises `VerifierError` for a type that nothing declares."""
    text = re.sub(r"//[^\n]*", "", text)
    enums: dict[str, tuple[str, dict[int, str]]] = {}
    unions: dict[str, dict[int, tuple[str, str]]] = {}
    bodies: dict[str, str] = {}
    for kind, name, base, body in _BLOCK.findall(text):
        if kind == "table":
            bodies[name] = body
        elif kind == "enum":
            enums[name] = (base, _numbered(body))
        else:
            members = [member.strip() for member in body.split(",") if member.strip()]
            pairs = [tuple(part.strip() for part in member.split(":")) for member in members]
            unions[name] = {number: (pair[0], pair[-1]) for number, pair in enumerate(pairs, start=1)}
    tables = {name: _fields(body, unions) for name, body in bodies.items()}
    known = {*SCALARS, *tables, *enums, *unions, "string"}
    for table, fields in tables.items():
        for field in fields:
            if field.type.strip("[]") not in known:
                raise VerifierError("unknown type in a FlatBuffer schema", got=f"{table}.{field.name}: {field.type}")
    return Schema(tables, enums, unions)


def _numbered(body: str) -> dict[int, str]:
    names: dict[int, str] = {}
    following = 0
    for member in filter(None, (part.strip() for part in body.split(","))):
        name, _, number = (part.strip() for part in member.partition("="))
        following = int(number) if number else following
        names[following] = name
        following += 1
    return names


def _fields(body: str, unions: dict[str, dict[int, tuple[str, str]]]) -> tuple[Field, ...]:
    fields, slot = [], 0
    for name, kind, default in _FIELD.findall(body):
        slot += kind in unions
        fields.append(Field(name, slot, kind.replace("executorch_flatbuffer.", ""), default or None))
        slot += 1
    return tuple(fields)


def _read(*files: upstream.File) -> Schema:
    return parse_schema("".join(file.resolve().read_text(encoding="utf-8") for file in files))


@cache
def program_schema() -> Schema:
    """Schema of the program, from the wheel."""
    return _read(upstream.SCALAR_TYPES, upstream.PROGRAM)


@cache
def etdump_schema() -> Schema:
    """Schema of an ETDump, from the wheel."""
    return _read(upstream.ETDUMP_SCALAR_TYPES, upstream.ETDUMP)


@cache
def xnnpack_schema() -> Schema:
    """Schema of an XNNPACK delegate's graph, from the wheel."""
    return _read(upstream.XNNPACK_GRAPH)
