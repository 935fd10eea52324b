"""Into a delegate: which of its nodes is the first that the runtime computes wrongly.

A runtime shows a delegate's inputs and outputs, nothing in between. So the delegate is taken out of the file and cut behind
one node after the other; each cut becomes a method of one instruction, with the very constants of the file, and runs on the inputs
that were recorded. Nodes are cut in order; the first whose value differs from the interpreter's is named.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.dtypes import program_name
from verifier.core import upstream
from verifier.core.errors import VerifierError
from verifier.interpret.machine import MethodState
from verifier.ladder.call_text import node_text
from verifier.ladder.compared import compare_tensors
from verifier.ladder.records import Compared
from verifier.operators.rounding import any_order
from verifier.runner.protocol import Bundle, Call, Runner

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class NodeError:
    """A node of a delegate, cut out and run: how its value compares with the interpreter's, which is `expected`.
    `cut` makes a `.pte` of this cut alone."""

    node: int
    kind: str
    compared: Compared
    expected: Tensor = field(repr=False)
    cut: Callable[[], bytes] = field(repr=False)


def cut_program(state: MethodState, instruction: int, inputs: list[Tensor], outputs: dict[int, Tensor]) -> bytes:
    """A `.pte` with one method `node_K` for every node K of `outputs`, which gives the shape of its value: the delegate of an
    instruction up to and with that node, whose value it returns.

    Raises `VerifierError` if ExecuTorch's serializer does not take it.
    """
    schema, entry = upstream.PROGRAM_CLASSES.resolve(), upstream.DATA_ENTRY.resolve()
    step = state.plan.instructions[instruction]
    graph = state.graph(step)
    assert step.delegate is not None
    payload = state.plan.delegates[step.delegate].payload
    cuts = [state.backend(step).cut(payload, state.storage, graph, node) for node in outputs]
    given = [_fact(x) for x in inputs]
    plans = [_plan(step.name, number, node, [*given, _fact(x)]) for number, (node, x) in enumerate(outputs.items())]
    program = schema.Program(
        version=0,
        execution_plan=plans,
        constant_buffer=[schema.Buffer(storage=b"")],
        backend_delegate_data=[schema.BackendDelegateInlineData(data=made) for made, _ in cuts],
        segments=[],
        constant_segment=schema.SubsegmentOffsets(segment_index=0, offsets=[]),
    )
    keys = {key: span for _, used in cuts for key, span in used.items()}
    named = upstream.NAMED_DATA.resolve()(
        buffers=[bytes(state.storage.read(span)) for span in keys.values()],
        pte_data={key: entry(number, 16, None) for number, key in enumerate(keys)},
        external_data={},
    )
    file = upstream.PTE_FILE.resolve()(program, named_data=named)
    return bytes(upstream.SERIALIZE_PTE.resolve()(file, extract_delegate_segments=True))


def _plan(backend: str, number: int, node: int, facts: list[tuple[str, tuple[int, ...]]]) -> Any:
    """A method that calls one delegate: its inputs from the caller, its one output in an arena of its own."""
    schema = upstream.PROGRAM_CLASSES.resolve()
    tensors = [_tensor(dtype, shape) for dtype, shape in facts]
    tensors[-1].allocation_info = schema.AllocationDetails(memory_id=1, memory_offset_low=0, memory_offset_high=0)
    numbers = list(range(len(tensors)))
    place = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, number)
    return schema.ExecutionPlan(
        name=f"node_{node}",
        container_meta_type=schema.ContainerMetadata("", ""),
        values=[schema.EValue(val=tensor) for tensor in tensors],
        inputs=numbers[:-1],
        outputs=numbers[-1:],
        chains=[schema.Chain([], [], [schema.Instruction(schema.DelegateCall(0, numbers))], None)],
        operators=[],
        delegates=[schema.BackendDelegate(backend, place, [])],
        non_const_buffer_sizes=[0, math.prod(facts[-1][1]) * 4 + 64],
    )


def _fact(x: Tensor) -> tuple[str, tuple[int, ...]]:
    """dtype as ExecuTorch spells it, and sizes."""
    return program_name(str(x.dtype).removeprefix("torch.")), tuple(x.shape)


def _tensor(dtype: str, shape: tuple[int, ...]) -> Any:
    schema = upstream.PROGRAM_CLASSES.resolve()
    return schema.Tensor(
        scalar_type=schema.ScalarType[dtype],
        storage_offset=0,
        sizes=list(shape),
        dim_order=list(range(len(shape))),
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=None,
        shape_dynamism=schema.TensorShapeDynamism.STATIC,
    )


def compare_nodes(state: MethodState, instruction: int, inputs: list[Tensor], runner: Runner) -> list[NodeError]:
    """Every node of a delegate whose value can be an output, in order: a dynamically quantized one cannot.

    Raises `VerifierError` if the cuts cannot be made or run.
    """
    step = state.plan.instructions[instruction]
    graph, backend = state.graph(step), state.backend(step)
    expected: dict[int, Tensor] = {}
    limits: dict[int, Tensor | None] = {}

    def observe(index: int, value: object, bound: Tensor | None) -> None:
        if isinstance(value, Tensor):
            expected[index], limits[index] = value, bound

    backend.run(graph, state.storage, inputs, observe=observe, bounds={}, order=None, sums=any_order)
    actual = _run_cuts(cut_program(state, instruction, inputs, expected), tuple(expected), inputs, runner)
    found = []
    for index, value in expected.items():
        node = graph.nodes[index]
        quantum = backend.step(graph, node.output)
        kind = "step" if quantum else "bound"
        text = node_text(graph, node, value)
        record = Compared(0, state.plan.name, instruction, node.kind, 0, kind, value.numel(), text)
        compared = compare_tensors(record, actual[index], value, quantum=quantum, bound=limits[index], propagated=value)
        cut = partial(cut_program, state, instruction, inputs, {index: value})
        found.append(NodeError(index, node.kind, compared, value, cut))
    return found


def _run_cuts(program: bytes, nodes: tuple[int, ...], inputs: list[Tensor], runner: Runner) -> dict[int, Tensor]:
    given = tuple(np.array(x.numpy(), order="C") for x in inputs)
    with tempfile.TemporaryDirectory(prefix="verifier-cut-") as folder:
        path = Path(folder) / "cut.pte"
        path.write_bytes(program)
        calls = tuple(Call(f"node_{node}", given) for node in nodes)
        result = runner.run(Bundle(path, calls), timeout_s=TIMEOUT_S)
    if result.outcome != "ok":
        raise VerifierError("a cut delegate does not run", got=f"{result.outcome}: {result.message}")
    return {node: torch.from_numpy(np.array(result.outputs[call])) for call, node in enumerate(nodes)}
