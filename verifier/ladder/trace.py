"""What the runtime computed at every instruction: its event tracer's ETDump and debug buffer, as arrays by instruction.

The tracer copies the results of every kernel and the arguments of every delegate call, inputs included, into one buffer;
`instruction_id` counts in the program's chain. Kernels that only change numbers or views leave nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.artifact.dtypes import PROGRAM
from verifier.artifact.flat import Record, read_flatbuffer
from verifier.artifact.schema import etdump_schema
from verifier.core.errors import RunnerError
from verifier.runner.constants import BUFFER_FILE, ETDUMP_FILE

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class TracedTensor:
    """A tensor in the debug buffer: it is read when asked for."""

    buffer: Path
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def array(self) -> NDArray[Any]:
        """Its contents, a copy. Raises `RunnerError` if it lies outside the buffer."""
        dtype = np.dtype(PROGRAM[self.dtype].numpy)
        if math.prod(self.sizes) == 0:
            return np.zeros(self.sizes, dtype)
        last = sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        extent = (last + 1) * dtype.itemsize
        if self.offset < 0 or last < 0 or self.offset + extent > self.buffer.stat().st_size:
            raise RunnerError(
                "a traced tensor lies outside the debug buffer", got=self.offset + extent, where=self.buffer
            )
        flat = np.fromfile(self.buffer, dtype, last + 1, offset=self.offset)
        steps = tuple(stride * dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.sizes, steps, writeable=False).copy()


CallTrace = dict[int, tuple[TracedTensor, ...]]
"""Instruction -> the tensors that were recorded there, in the order of its arguments."""


class UntracedError(RunnerError):
    """The runtime was built without its event tracer, as the wheels of executorch before 1.5 are."""


def require_trace(directory: Path) -> None:
    """Raises `UntracedError` if a traced run left no trace in its folder."""
    if not all((directory / name).is_file() for name in (ETDUMP_FILE, BUFFER_FILE)):
        raise UntracedError(
            "the runtime wrote no trace: it was built without its event tracer, as the wheels of executorch before 1.5",
            expected=f"{ETDUMP_FILE} and {BUFFER_FILE}",
            fix="verify with executorch 1.5 or newer, or with --target native; verifier.skew then compares this runtime with it",
        )


def read_trace(directory: Path) -> list[CallTrace]:
    """Traces of all calls that ran, in order. Raises `RunnerError` or `ArtifactError` for files that are none."""
    path, buffer = directory / ETDUMP_FILE, directory / BUFFER_FILE
    require_trace(directory)
    data = path.read_bytes()
    dump = read_flatbuffer(memoryview(data)[4:], etdump_schema(), "ETDump", what="the ETDump")
    return [_call(run, buffer) for run in dump.run_data if run.name == "Execute"]


def _call(run: Record, buffer: Path) -> CallTrace:
    found: dict[int, list[TracedTensor]] = {}
    for event in run.events:
        debug = event.debug_event
        if debug is None or debug.debug_entry is None or debug.instruction_id < 0:
            continue
        entry = debug.debug_entry
        listed = entry.tensor_list.tensors if entry.tensor_list is not None else []
        for tensor in [*([entry.tensor] if entry.tensor is not None else []), *listed]:
            found.setdefault(debug.instruction_id, []).append(_tensor(tensor, buffer))
    return {instruction: tuple(tensors) for instruction, tensors in found.items()}


def _tensor(record: Record, buffer: Path) -> TracedTensor:
    sizes, strides = tuple(record.sizes), tuple(record.strides)
    dtype = PROGRAM.get(record.scalar_type)
    if dtype is None or dtype.numpy is None or len(sizes) != len(strides) or any(s < 0 for s in (*sizes, *strides)):
        raise RunnerError(
            "a traced tensor that cannot be", got=f"{record.scalar_type}{list(sizes)} strides {list(strides)}"
        )
    return TracedTensor(buffer, record.scalar_type, sizes, strides, record.offset)
