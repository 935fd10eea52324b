"""Precise wounds in a `.pte`: one scalar of its program or of a delegate's graph, found by its place in the schema."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from verifier.artifact.flat import Record, _Reader
from verifier.artifact.header import read_header
from verifier.artifact.program import Artifact, open_artifact
from verifier.artifact.schema import SCALARS, Field, Schema, program_schema, xnnpack_schema
from verifier.artifact.storage import Bytes, Span
from verifier.audit.assign import assign_constants
from verifier.audit.inventory import Constant, take_inventory
from verifier.core.errors import ArtifactError
from verifier.families.checkpoint import Checkpoint
from verifier.families.registry import open_family


class Flat(_Reader):
    """A FlatBuffer whose records remember where they lie. `base` is where the buffer begins in the file."""

    def __init__(self, data: bytes, base: int, schema: Schema, root: str) -> None:
        super().__init__(memoryview(data), schema, "the file under the knife")
        self.base = base
        self.places: dict[int, int] = {}
        self.root = self.table(root, self.scalar("I", 0), 0)

    def table(self, kind: str, at: int, depth: int) -> Record:
        """As the reader does it, with a note of the place."""
        record = super().table(kind, at, depth)
        self.places[id(record.fields)] = at
        return record

    def field(self, record: Record, table: str, name: str) -> tuple[int, str]:
        """Place in the file of a scalar field, and its struct code. Raises `ArtifactError` if the field is left at its default."""
        field, at = self._find(record, table, name)
        return self.base + at, SCALARS[field.type]

    def tag(self, record: Record, table: str, name: str) -> tuple[int, str]:
        """Place in the file of the tag of a union: which of its members it is."""
        _, at = self._find(record, table, name, before=1)
        return self.base + at, "B"

    def items(self, record: Record, table: str, name: str) -> int:
        """Place in the file of the first item of a vector of scalars."""
        _, at = self._find(record, table, name)
        return self.base + at + int(self.scalar("I", at)) + 4

    def swap(self, path: Path, record: Record, table: str, name: str, *, first: int, second: int) -> None:
        """Let two items of a vector of tables change places in the file: offsets count from where they stand."""
        _, at = self._find(record, table, name)
        start = at + int(self.scalar("I", at)) + 4
        places = [start + 4 * number for number in (first, second)]
        targets = [place + int(self.scalar("I", place)) for place in places]
        for place, target in zip(places, reversed(targets), strict=True):
            write_scalar(path, (self.base + place, "i"), target - place)

    def _find(self, record: Record, table: str, name: str, *, before: int = 0) -> tuple[Field, int]:
        at = self.places[id(record.fields)]
        field = next(f for f in self.schema.tables[table] if f.name == name)
        vtable = at - int(self.scalar("i", at))
        offset = int(self.scalar("H", vtable + 4 + 2 * (field.slot - before)))
        if not offset:
            raise ArtifactError(f"{table}.{name} is left at its default: there is no byte to change")
        return field, at + offset


def program_of(path: Path) -> Flat:
    """The program of a file."""
    size = read_header(path).program_bytes
    with path.open("rb") as file:
        return Flat(file.read(size), 0, program_schema(), "Program")


def graph_of(artifact: Artifact, method: str, instruction: int) -> Flat:
    """The graph of the delegate that an instruction calls."""
    plan = artifact.plans[method]
    number = plan.instructions[instruction].delegate
    assert number is not None
    payload = plan.delegates[number].payload
    raw = bytes(artifact.storage.read(payload))
    offset, size = struct.unpack_from("<II", raw, 10)
    return Flat(raw[offset : offset + size], payload.offset + offset, xnnpack_schema(), "XNNGraph")


def write_scalar(path: Path, place: tuple[int, str], value: float) -> None:
    """Overwrite one scalar of a file."""
    at, code = place
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<" + code, value))


def change_bytes(path: Path, span: Span, change: Callable[[Bytes], Any]) -> None:
    """Replace a stretch of a file by what `change` makes of it (a uint8 array): an array of as many bytes."""
    data = np.fromfile(path, np.uint8, span.size, offset=span.offset)
    made = np.ascontiguousarray(change(data)).view(np.uint8)
    assert made.size == span.size
    with path.open("r+b") as file:
        file.seek(span.offset)
        file.write(made.tobytes())


def find_constants(path: Path, checkpoint: Checkpoint) -> dict[str, Constant]:
    """The constant that holds each parameter of the checkpoint, by the audit of a clean file."""
    artifact = open_artifact(path)
    inventory = take_inventory(artifact)
    assigned = assign_constants(inventory, open_family(checkpoint), artifact.storage, embedding_bits=8)
    return {one.parameter.name: constant for constant, one in zip(inventory, assigned, strict=True) if one.parameter}
