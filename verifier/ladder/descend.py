"""Into a delegate: which of its nodes is the first that the runtime computes wrongly.

A runtime shows a delegate's inputs and outputs, nothing in between. So the delegate is taken out of the file and cut behind
one node after the other; each cut becomes a method of one instruction, with the very constants of the file, and runs on the inputs
that were recorded. Nodes are cut in order; the first whose value departs from the interpreter's is named.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.storage import Span, Storage
from verifier.artifact.xnnpack import INVALID_ID, Graph, PerChannel, PerTensor, Quantization
from verifier.core import upstream
from verifier.errors import VerifierError
from verifier.interpret.context import Operand
from verifier.interpret.delegate import run_graph
from verifier.interpret.machine import MethodState
from verifier.interpret.rounding import any_order
from verifier.ladder.compared import Compared, compare_tensors
from verifier.ladder.replay import output_step
from verifier.runner.protocol import Bundle, Call, Runner

EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2  # XNN_VALUE_FLAG_EXTERNAL_INPUT and _OUTPUT
TIMEOUT_S = 300.0
_DTYPES = {torch.float32: "FLOAT", torch.int8: "CHAR"}


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
    cuts = [_cut_payload(payload, state.storage, graph, node) for node in outputs]
    given = [_fact(x) for x in inputs]
    plans = [_plan(number, node, [*given, _fact(x)]) for number, (node, x) in enumerate(outputs.items())]
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


def _plan(number: int, node: int, facts: list[tuple[str, tuple[int, ...]]]) -> Any:
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
        delegates=[schema.BackendDelegate("XnnpackBackend", place, [])],
        non_const_buffer_sizes=[0, math.prod(facts[-1][1]) * 4 + 64],
    )


def _fact(x: Tensor) -> tuple[str, tuple[int, ...]]:
    """dtype as ExecuTorch spells it, and sizes."""
    return _DTYPES[x.dtype], tuple(x.shape)


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


def _cut_payload(payload: Span, storage: Storage, graph: Graph, node: int) -> tuple[bytes, dict[str, Span]]:
    """The delegate's payload cut behind a node, and the named data it uses: ExecuTorch's flatc takes it apart and together."""
    raw = bytes(storage.read(payload))
    offset, size, inline_offset, inline_size = struct.unpack_from("<IIIQ", raw, 10)
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(upstream.XNNPACK_GRAPH.resolve().read_bytes())
        binary.write_bytes(raw[offset : offset + size])
        upstream.FLATC_DECOMPILE.resolve()(folder, str(schema), str(binary), ["--raw-binary"])
        text = json.loads(binary.with_suffix(".json").read_text())
        keys = {
            c["named_key"]: storage.named[c["named_key"]] for c in text.get("constant_data", []) if c.get("named_key")
        }
        _cut(text, graph, node)
        binary.with_suffix(".json").write_text(json.dumps(text))
        upstream.FLATC_COMPILE.resolve()(folder, str(schema), str(binary.with_suffix(".json")))
        made = binary.read_bytes()
    padded = made + bytes(-len(made) % 16)
    start = 32
    head = struct.pack("<4x4sHIIIQ", b"XH00", 30, start, len(made), start + len(padded), inline_size)
    return head.ljust(start, b"\0") + padded + raw[inline_offset : inline_offset + inline_size], keys


def _cut(text: dict[str, Any], graph: Graph, node: int) -> None:
    """Leave out the nodes that follow, and make the node's value the only output."""
    target = graph.nodes[node].output
    text["xnodes"] = text["xnodes"][: node + 1]
    for entry, known in zip(text["xnodes"], graph.nodes, strict=False):
        if known.clamp is not None:
            entry["output_min_max"] = {"output_min": known.clamp[0], "output_max": known.clamp[1]}
    text["output_ids"] = [target]
    text["num_externs"] = len(graph.inputs) + 1
    for value in text["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        number = tensor.get("id_out", 0)
        _restore_scales(union, graph.values[number].quantization)
        if number == target:
            tensor["external_id"], tensor["flags"] = len(graph.inputs), EXTERNAL_OUTPUT
        elif number in graph.outputs:
            tensor["external_id"], tensor["flags"] = INVALID_ID, 0
        elif number in graph.inputs:
            tensor["external_id"], tensor["flags"] = graph.inputs.index(number), EXTERNAL_INPUT


def _restore_scales(union: dict[str, Any], quantization: Quantization) -> None:
    """flatc writes floats with six digits, which moves the rounding of int8; the exact ones take their place."""
    if isinstance(quantization, PerTensor):
        union["quant_params"]["scale"] = quantization.scale
    elif isinstance(quantization, PerChannel) and isinstance(quantization.scales, tuple):
        union["quant_params"]["scale"] = list(quantization.scales)


def descend(state: MethodState, instruction: int, inputs: list[Tensor], runner: Runner) -> list[NodeError]:
    """Every node of a delegate whose value can be an output, in order: a dynamically quantized one cannot.

    Raises `VerifierError` if the cuts cannot be made or run.
    """
    graph = state.graph(state.plan.instructions[instruction])
    expected: dict[int, Tensor] = {}
    limits: dict[int, Tensor | None] = {}

    def observe(index: int, value: Operand, bound: Tensor | None) -> None:
        if isinstance(value, Tensor):
            expected[index], limits[index] = value, bound

    run_graph(graph, state.storage, inputs, observe=observe, bounds={}, sums=any_order)
    actual = _run_cuts(cut_program(state, instruction, inputs, expected), tuple(expected), inputs, runner)
    found = []
    for index, value in expected.items():
        node = graph.nodes[index]
        quantum = output_step(graph, node.output)
        kind = "step" if quantum else "bound"
        record = Compared(0, state.plan.name, instruction, node.kind, 0, kind, value.numel())
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
