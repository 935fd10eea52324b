"""int8 tensors between delegates: the scale and zero point that one was written with are those that it is read with.

A file can say otherwise (ET#21773 read zero points as another type), and no delegate can see that: each has its own copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from verifier.artifact.plan import Instruction, Plan
from verifier.artifact.program import Artifact
from verifier.audit.records import Handovers, Misread
from verifier.backends.backend import Opaque
from verifier.backends.calls import delegate_of, given_and_made, graph_of, results_of
from verifier.backends.quantization import PerTensor


def handovers(artifact: Artifact) -> Handovers:
    """All of them between delegates that can be read, in program order. Raises `ArtifactError` for a damaged one."""
    compared, misread = 0, []
    for plan in artifact.plans.values():
        written: dict[int, tuple[int, PerTensor]] = {}
        for step in plan.instructions:
            if step.kind == "delegate" and isinstance(delegate_of(artifact, plan, step), Opaque):
                written = {value: made for value, made in written.items() if value not in step.args}
                continue
            if step.kind != "delegate":
                for value in results_of(artifact, plan, step):
                    written.pop(value, None)
                continue
            for value, read in _taken(artifact, plan, step):
                if value in written:
                    compared += 1
                    writer, quantization = written[value]
                    if quantization != read or not math.isfinite(read.scale):
                        misread.append(Misread(plan.name, value, writer, step.index, quantization, read))
            for value, made in _given(artifact, plan, step):
                written[value] = step.index, made
    return Handovers(compared, tuple(misread))


def _taken(artifact: Artifact, plan: Plan, step: Instruction) -> Iterator[tuple[int, PerTensor]]:
    graph = graph_of(artifact, plan, step)
    for value, id in zip(given_and_made(artifact, plan, step)[0], graph.inputs, strict=True):
        if isinstance(quantization := graph.values[id].quantization, PerTensor):
            yield value, quantization


def _given(artifact: Artifact, plan: Plan, step: Instruction) -> Iterator[tuple[int, PerTensor]]:
    graph = graph_of(artifact, plan, step)
    for value, id in zip(results_of(artifact, plan, step), graph.outputs, strict=False):
        if isinstance(quantization := graph.values[id].quantization, PerTensor):
            yield value, quantization
