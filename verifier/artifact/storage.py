"""The bytes behind a `.pte`, memory-mapped: opening one costs the pages that are read."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from verifier.artifact.flat import Record
from verifier.artifact.header import Header
from verifier.core.errors import ArtifactError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Span:
    """Bytes `offset` to `offset + size` of the file."""

    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Storage:
    """Where things lie in the file: segments by number, named data and constants as spans of the file. Two are never equal, so that
    what was read through one can be remembered by it."""

    path: Path
    segments: tuple[Span, ...]
    named: dict[str, Span]
    constants: tuple[Span, ...]
    constant_end: int
    overrides: Mapping[Span, Callable[[], Bytes]] = field(default_factory=dict, repr=False)

    def read(self, span: Span) -> Bytes:
        """A read-only view of the file; nothing is copied. An override takes the place of the bytes of its very span."""
        if span in self.overrides:
            return self.overrides[span]()
        if span.size == 0:
            return np.zeros(0, np.uint8)
        before = span.offset % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb", buffering=0) as file:  # np.memmap does as much, in four times the time
            held = mmap.mmap(file.fileno(), before + span.size, access=mmap.ACCESS_READ, offset=span.offset - before)
        return np.frombuffer(held, np.uint8, span.size, before)

    def constant(self, index: int, size_bytes: int) -> Span:
        """The span of constant buffer `index`, which a tensor of `size_bytes` lies in. Raises `ArtifactError`."""
        if not 0 < index < len(self.constants):
            raise ArtifactError(
                "a tensor names a constant that does not exist",
                got=index,
                expected=f"1..{len(self.constants) - 1}",
                where=self.path,
            )
        start = self.constants[index].offset
        if start + size_bytes > self.constant_end:
            raise ArtifactError(
                f"constant {index} ends outside its segment",
                got=f"{size_bytes} bytes at {start}",
                expected=f"an end before {self.constant_end}",
                where=self.path,
            )
        return Span(start, size_bytes)


def locate(program: Record, header: Header, path: Path) -> Storage:
    """Resolve segments, named data and constants to places in the file. Raises `ArtifactError` for one outside."""
    room = header.file_bytes - header.segment_base
    segments = []
    for number, segment in enumerate(program.segments):
        if segment.offset + segment.size > room:
            raise ArtifactError(
                f"segment {number} lies outside the file",
                got=f"bytes {segment.offset}..{segment.offset + segment.size} of {room}",
                where=path,
                fix="copy or export the file again",
            )
        segments.append(Span(header.segment_base + segment.offset, segment.size))
    named = {}
    for entry in program.named_data:
        if not 0 <= entry.segment_index < len(segments):
            raise ArtifactError("named data lies in no segment", got=entry.segment_index, where=entry.key)
        named[str(entry.key)] = segments[entry.segment_index]
    constants, end = _constants(program, segments, path)
    return Storage(path, tuple(segments), named, constants, end)


def _constants(program: Record, segments: list[Span], path: Path) -> tuple[tuple[Span, ...], int]:
    place = program.constant_segment
    if place is None or not place.offsets:
        return (), 0
    if not 0 <= place.segment_index < len(segments):
        raise ArtifactError("the constants lie in no segment", got=place.segment_index, where=path)
    segment = segments[place.segment_index]
    if any(offset > segment.size for offset in place.offsets):
        raise ArtifactError("a constant begins outside its segment", got=max(place.offsets), where=path)
    return tuple(Span(segment.offset + offset, 0) for offset in place.offsets), segment.offset + segment.size
