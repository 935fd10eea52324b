"""A FlatBuffer as records, for bytes that nobody vouches for.

Every offset is checked against the buffer, and all reading is charged against a budget of a few times the buffer's size:
a file whose vectors all point at each other ends in an error after linear work, where a plain deserializer would fill
the memory. Format: https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from verifier.artifact.schema import SCALARS, Field, Schema
from verifier.core.errors import ArtifactError
from verifier.core.records import JsonObject

BUDGET_FACTOR = 8
"""Whole programs of the exporter need 0.96 times their bytes: shared vtables and strings are charged each time."""
DEPTH_LIMIT = 32
RECORD_LIMIT = 250_000
"""Tables in one buffer: the embedded program has 2,927, and their number grows with that of the layers. Each costs a Python object, so this
bounds time (seconds) and memory (a few hundred megabytes) where the byte budget of a large buffer would not."""


@dataclass(frozen=True)
class Record:
    """One table: its type in the schema, and its fields by name, defaults filled in.

    Tables are records, vectors lists, enums their names, bytes `memoryview`s of the buffer.
    """

    kind: str
    fields: JsonObject

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(f"{self.kind} has no field {name}") from None


class _Reader:
    def __init__(self, data: memoryview, schema: Schema, what: str) -> None:
        self.data, self.schema, self.what = data, schema, what
        self.budget = BUDGET_FACTOR * len(data) + 4096
        self.records = 0

    def fail(self, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self.what} cannot be parsed",
            got=reason,
            expected="a FlatBuffer as the exporter writes it",
            fix="export or copy the file again",
        )

    def scalar(self, code: str, at: int) -> Any:
        size = struct.calcsize("<" + code)
        if at < 0 or at + size > len(self.data):
            raise self.fail(f"offset {at} lies outside its {len(self.data)} bytes")
        return struct.unpack_from("<" + code, self.data, at)[0]

    def spend(self, amount: int) -> None:
        self.budget -= amount
        if self.budget < 0:
            raise self.fail("its parts are nested into one another: more content than bytes")

    def table(self, kind: str, at: int, depth: int) -> Record:
        self.records += 1
        if depth > DEPTH_LIMIT or self.records > RECORD_LIMIT:
            raise self.fail(f"more than {RECORD_LIMIT:,} tables, or nested deeper than {DEPTH_LIMIT}")
        vtable = at - self.scalar("i", at)
        size = self.scalar("H", vtable)
        if size < 4 or vtable + size > len(self.data):
            raise self.fail(f"a vtable of {size} bytes at {vtable}")
        self.spend(4 + size)
        fields = {}
        for field in self.schema.tables[kind]:
            slot = 4 + 2 * field.slot
            offset = self.scalar("H", vtable + slot) if slot + 2 <= size else 0
            if field.type in self.schema.unions:
                tag_offset = self.scalar("H", vtable + slot - 2) if slot <= size else 0
                tag = self.scalar("B", at + tag_offset) if tag_offset else 0
                fields[field.name] = self.union(field, tag, at + offset if offset else None, depth)
            else:
                fields[field.name] = self.value(field, at + offset, depth) if offset else self.default(field)
        return Record(kind, fields)

    def union(self, field: Field, tag: int, at: int | None, depth: int) -> Record | None:
        if tag == 0 or at is None:
            return None
        member = self.schema.unions[field.type].get(tag)
        if member is None:
            raise self.fail(f"{field.type} has no member {tag}")
        record = self.table(member[1], at + self.scalar("I", at), depth + 1)
        return Record(member[0], record.fields)

    def default(self, field: Field) -> Any:
        if field.type.startswith("["):
            return []
        if field.type in SCALARS:
            kind = float if field.type in ("float", "double") else bool if field.type == "bool" else int
            return kind(field.default or 0)
        if field.type in self.schema.enums:
            names = self.schema.enums[field.type][1]
            return field.default or names.get(0, next(iter(names.values())))
        return None

    def value(self, field: Field, at: int, depth: int) -> Any:
        kind = field.type
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], at)
        if kind in self.schema.enums:
            return self.enum(kind, at)
        target = at + self.scalar("I", at)
        if kind == "string":
            return self.string(target)
        if kind.startswith("["):
            return self.vector(kind[1:-1], target, depth)
        return self.table(kind, target, depth + 1)

    def enum(self, kind: str, at: int) -> str:
        base, names = self.schema.enums[kind]
        number = self.scalar(SCALARS[base], at)
        if number not in names:
            raise self.fail(f"{kind} has no value {number}")
        return names[number]

    def span(self, at: int, item_bytes: int) -> tuple[int, int]:
        count = self.scalar("I", at)
        if at + 4 + count * item_bytes > len(self.data):
            raise self.fail(f"a vector of {count} items at {at} ends outside its {len(self.data)} bytes")
        self.spend(4 + count * item_bytes)
        return count, at + 4

    def string(self, at: int) -> str:
        count, first = self.span(at, 1)
        try:
            return bytes(self.data[first : first + count]).decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"a string that is not UTF-8: {error.reason}") from error

    def vector(self, kind: str, at: int, depth: int) -> Any:
        if kind == "ubyte":
            count, first = self.span(at, 1)
            return self.data[first : first + count]
        if kind in SCALARS:
            code = SCALARS[kind]
            count, first = self.span(at, struct.calcsize("<" + code))
            return list(struct.unpack_from(f"<{count}{code}", self.data, first))
        count, first = self.span(at, 4)
        starts = [place + self.scalar("I", place) for place in range(first, first + 4 * count, 4)]
        if kind == "string":
            return [self.string(start) for start in starts]
        return [self.table(kind, start, depth + 1) for start in starts]


def read_flatbuffer(data: memoryview, schema: Schema, root: str, *, what: str) -> Record:
    """The root table of a buffer, with everything below it. Raises `ArtifactError`; time and memory are linear in the bytes."""
    reader = _Reader(data, schema, what)
    return reader.table(root, reader.scalar("I", 0), 0)
