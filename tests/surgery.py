"""Precise wounds in a `.pte`: one scalar of its program or of a delegate's graph, found by its place in the schema."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verifier.artifact.flat import Record, _Reader
from verifier.artifact.header import read_header
from verifier.artifact.program import Artifact, open_artifact
from verifier.artifact.schema import SCALARS, Schema, program_schema, xnnpack_schema
from verifier.artifact.storage import Span


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
        """Place in the file of a scalar field, and its struct code. Fails if the field is left at its default."""
        at = self.places[id(record.fields)]
        field = next(f for f in self.schema.tables[table] if f.name == name)
        vtable = at - self.scalar("i", at)
        offset = self.scalar("H", vtable + 4 + 2 * field.slot)
        assert offset, f"{name} is left at its default: there is no byte to change"
        return self.base + at + offset, SCALARS[field.type]

    def items(self, record: Record, table: str, name: str) -> int:
        """Place in the file of the first item of a vector of scalars."""
        at = self.places[id(record.fields)]
        field = next(f for f in self.schema.tables[table] if f.name == name)
        vtable = at - self.scalar("i", at)
        where = at + self.scalar("H", vtable + 4 + 2 * field.slot)
        return self.base + where + self.scalar("I", where) + 4


def program_of(path: Path) -> Flat:
    """The program of a file."""
    size = read_header(path).program_bytes
    return Flat(path.read_bytes()[:size], 0, program_schema(), "Program")


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


def change_bytes(path: Path, span: Span, change: Callable[[Any], Any]) -> None:
    """Replace a stretch of a file by what `change` makes of it (a uint8 array of the same length)."""
    import numpy as np

    data = np.fromfile(path, np.uint8, span.size, offset=span.offset)
    made = np.ascontiguousarray(change(data)).view(np.uint8)
    assert made.size == span.size
    with path.open("r+b") as file:
        file.seek(span.offset)
        file.write(made.tobytes())


def find_instruction(path: Path, method: str, parameter: str, checkpoint: Any) -> tuple[int, Any]:
    """The instruction that uses a parameter, and its constant, by the audit of a clean file."""
    from verifier.audit.assign import assign_constants
    from verifier.audit.inventory import take_inventory
    from verifier.model.keymap import map_keys

    artifact = open_artifact(path)
    inventory = take_inventory(artifact)
    keys = map_keys(checkpoint.keys, checkpoint.geometry)
    assigned = assign_constants(inventory, keys, checkpoint, artifact.storage, embedding_bits=8)
    for constant, held in zip(inventory, assigned, strict=True):
        if held is not None and held.name == f"{method}.{parameter}":
            return constant.instruction, constant
    raise AssertionError(f"no constant holds {method}.{parameter}")
