"""Two exports side by side: the same structure, and constants within a quantization step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.artifact.header import read_header
from verifier.artifact.program import open_artifact, read_program


@dataclass(frozen=True)
class ProgramDifference:
    """`structure` lists what cannot be compared; `constants` maps a segment to how many bytes differ; `worst_step` is the
    largest difference of two bytes read as int8 weights."""

    structure: list[str] = field(default_factory=list)
    constants: dict[str, int] = field(default_factory=dict)
    worst_step: int = 0


def _segments(path: Path) -> list[tuple[str, Any]]:
    storage, _ = read_program(path, read_header(path))
    names = {span: key for key, span in storage.named.items()}
    return [(names.get(span, f"segment {i}"), storage.read(span)) for i, span in enumerate(storage.segments)]


def compare_programs(actual: Path, expected: Path) -> ProgramDifference:
    """Compare instruction census and every segment of two programs. Raises `ArtifactError`."""
    structure = [] if open_artifact(actual).census() == open_artifact(expected).census() else ["instruction census"]
    ours, theirs = _segments(actual), _segments(expected)
    if [len(d) for _, d in ours] != [len(d) for _, d in theirs]:
        return ProgramDifference([*structure, "sizes of the segments"])
    constants: dict[str, int] = {}
    worst = 0
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        differing = int((a != b).sum())
        if differing:
            constants[name] = differing
            step = np.abs(a.view(np.int8).astype(np.int16) - b.view(np.int8)).max()
            worst = max(worst, int(step))
    return ProgramDifference(structure, constants, worst)
