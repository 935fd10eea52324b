"""The same program with other EValues among the inputs and outputs of a method: its caches can be read and set.

Nothing but two lists changes: they are written anew behind the program's FlatBuffer, instructions, payloads and constants
stay as they are, byte by byte.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from verifier.artifact.header import read_header
from verifier.artifact.program import Artifact
from verifier.artifact.schema import program_schema
from verifier.core.errors import ArtifactError

_SIZES_AT = 16  # of program size and segment base, u64 each, in the extended header


def rewire(
    artifact: Artifact,
    path: Path,
    method: str,
    *,
    inputs: Sequence[int] = (),
    outputs: Sequence[int] = (),
    until: int | None = None,
) -> None:
    """Write a copy of a program in which a method takes and returns more EValues, behind its own ones. With `until` it ends behind that
    instruction, and returns `outputs` alone: what it would have returned is not computed.

    Raises `ArtifactError` for a file without extended header: its segments cannot be found again.
    """
    header = read_header(artifact.path)
    plan = artifact.plans[method]
    with artifact.path.open("rb") as source:
        program = bytearray(source.read(header.program_bytes))
        if program[8:12] != b"eh00":
            raise ArtifactError(
                "the program has no extended header", where=artifact.path, fix="export it with ExecuTorch 1.x"
            )
        program += bytes(-len(program) % 4)
        own = plan.outputs if until is None else ()
        if until is not None:
            _end_behind(program, method, until)
        for name, listed in (("inputs", (*plan.inputs, *inputs)), ("outputs", (*own, *outputs))):
            place = _place(program, method, name)
            struct.pack_into("<I", program, place, len(program) - place)
            program += struct.pack(f"<I{len(listed)}i", len(listed), *listed)
        base = header.segment_base
        alignment = base & -base  # the segments must lie as they lay, modulo what their base was aligned to
        while base < len(program):
            base += max(alignment, 16)
        struct.pack_into("<QQ", program, _SIZES_AT, len(program), base if header.segment_base else 0)
        with path.open("wb") as file:
            file.write(program)
            if header.segment_base:
                file.write(bytes(base - len(program)))
                source.seek(header.segment_base)
                shutil.copyfileobj(source, file, 16 << 20)


def _place(program: bytearray, method: str, name: str) -> int:
    """Where the offset of an execution plan's vector stands. The program has been read before, so its offsets are sound."""
    plans = _follow(program, _field(program, _follow(program, 0), "Program", "execution_plan"))
    for number in range(struct.unpack_from("<I", program, plans)[0]):
        plan = _follow(program, plans + 4 + 4 * number)
        text = _follow(program, _field(program, plan, "ExecutionPlan", "name"))
        size = struct.unpack_from("<I", program, text)[0]
        if program[text + 4 : text + 4 + size].decode() == method:
            return _field(program, plan, "ExecutionPlan", name)
    raise ArtifactError("the program has no such method", got=method)


def _end_behind(program: bytearray, method: str, instruction: int) -> None:
    """Shorten the list of a method's instructions, in place."""
    chains = _follow(program, _place(program, method, "chains"))
    listed = _follow(program, _field(program, _follow(program, chains + 4), "Chain", "instructions"))
    count = struct.unpack_from("<I", program, listed)[0]
    if not 0 <= instruction < count:
        raise ArtifactError("the method has no such instruction", got=instruction, expected=f"0..{count - 1}")
    struct.pack_into("<I", program, listed, instruction + 1)


def _field(program: bytearray, table: int, kind: str, wanted: str) -> int:
    slot = next(f.slot for f in program_schema().tables[kind] if f.name == wanted)
    vtable = table - struct.unpack_from("<i", program, table)[0]
    offset = struct.unpack_from("<H", program, vtable + 4 + 2 * slot)[0]
    return int(table + offset)


def _follow(program: bytearray, place: int) -> int:
    return int(place + struct.unpack_from("<I", program, place)[0])
