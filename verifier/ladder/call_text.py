"""A call in words, for messages: what an instruction or a node is given and gives, with dtypes and sizes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from verifier.artifact.dtypes import PROGRAM, XNNPACK, program_name
from verifier.artifact.plan import Instruction
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.quantization import PerGroup
from verifier.interpret.machine import MethodState

SHOWN_NODES = 5
"""Nodes of a delegate that a message names; of more, three."""


def operator_name(state: MethodState, step: Instruction) -> str:
    """The kernel's name, or the nodes of a delegate."""
    if step.kind != "delegate":
        return step.name
    return "+".join(node.short for node in state.graph(step).nodes)


def tensor_text(x: Tensor) -> str:
    """`f32[1,17,256]`."""
    return f"{PROGRAM[program_name(str(x.dtype).removeprefix('torch.'))].short}{_sizes(x.shape)}"


def instruction_text(state: MethodState, step: Instruction, operands: Iterable[object], result: Tensor) -> str:
    """`aten::add.out(f32[1,17,256], f32[1,17,256]) -> f32[1,17,256]`; a delegate by its nodes, of many the first two and the last."""
    given = ", ".join(tensor_text(x) for x in operands if isinstance(x, Tensor))
    return f"{_short(operator_name(state, step))}({given}) -> {tensor_text(result)}"


def _short(operator: str) -> str:
    nodes = operator.split("+")
    if len(nodes) <= SHOWN_NODES:
        return operator
    return f"{len(nodes)} nodes {nodes[0]}+{nodes[1]}+…+{nodes[-1]}"


def node_text(graph: Graph, node: Node, result: Tensor) -> str:
    """`XNNFullyConnected(qd8[1,17,256], qb4w[512,256] g64) -> f32[1,17,512]`; sizes of operands are their upper bounds."""
    given = ", ".join(_value_text(graph.values[id]) for id in node.inputs if id is not None)
    return f"{node.kind}({given}) -> {XNNPACK[graph.values[node.output].dtype].short}{_sizes(result.shape)}"


def _value_text(value: GraphValue) -> str:
    group = f" g{value.quantization.group_size}" if isinstance(value.quantization, PerGroup) else ""
    return f"{XNNPACK[value.dtype].short}{_sizes(value.dims)}{group}"


def _sizes(sizes: Iterable[int]) -> str:
    return f"[{','.join(map(str, sizes))}]"
