"""The event tracer's buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verifier.artifact.plan import TensorValue
from verifier.artifact.program import open_artifact
from verifier.interpret.machine import Machine
from verifier.ladder.gather import traced_bytes
from verifier.ladder.trace import read_trace
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call, TraceRequest


def test_buffer_is_as_large_as_needed(micro_model: Path, tmp_path: Path) -> None:
    """What the encoder leaves fits into the computed bound, all its results are there, and the bound is not lavish: the tracer ends
    the process when a buffer is full, and a 7B encoder's is 4 GB of memory."""
    artifact = open_artifact(micro_model / "model.pte")
    state = Machine(artifact).methods["vision_encoder"]
    bound = traced_bytes(state, 0, artifact.max_seq_len)
    pixels = state.plan.values[state.plan.inputs[0]]
    assert isinstance(pixels, TensorValue)
    calls = (Call("vision_encoder", (np.full(pixels.sizes, 7, np.uint8),)),)
    result = LocalRunner().run(Bundle(artifact.path, calls, trace=TraceRequest(tmp_path, bound)), timeout_s=600)
    assert result.outcome == "ok", result.message
    (trace,) = read_trace(tmp_path)
    tensors = [tensor for found in trace.values() for tensor in found]
    used = max(tensor.offset + tensor.array().nbytes for tensor in tensors)
    assert bound / 2 < used <= bound
    short = TraceRequest(tmp_path, used - 1024)
    assert LocalRunner().run(Bundle(artifact.path, calls, trace=short), timeout_s=600).outcome == "crashed"
