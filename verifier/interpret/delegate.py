"""A whole XNNPACK delegate, node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifier.artifact.storage import Storage
from verifier.artifact.xnnpack import Graph, PerTensor
from verifier.interpret.arithmetic import QMAX, QMIN, QuantizedRows
from verifier.interpret.context import Context, Operand
from verifier.interpret.errors import UnknownOperationError
from verifier.interpret.nodes import NODES
from verifier.interpret.order import Order
from verifier.interpret.rounding import Sums, likely

NodeObserver = Callable[[int, Operand, Tensor | None], None]


def run_graph(
    graph: Graph,
    storage: Storage,
    inputs: Sequence[Tensor],
    *,
    observe: NodeObserver | None = None,
    bounds: dict[int, Tensor] | None = None,
    order: Order | None = None,
    sums: Sums = likely,
) -> tuple[Tensor, ...]:
    """Outputs for the inputs of one call, both in the order of its arguments. `observe` sees the result of every node, and its
    error bound if there is one.

    `bounds`, if given, is filled with the running error bound of every fp32 value by id (see `verifier.interpret.node_bounds`). `order` and
    `sums` are those of `Context`.

    Values are dropped after their last use, so that memory follows the widest node. Raises `UnknownOperationError`.
    """
    contents: dict[int, Operand] = dict(zip(graph.inputs, inputs, strict=True))
    context = Context(graph, storage, contents, order, sums)
    last_use = {id: node.index for node in graph.nodes for id in node.inputs if id is not None}
    for node in graph.nodes:
        if node.kind not in NODES:
            raise UnknownOperationError(
                "an XNNPACK node without semantics",
                got=node.kind,
                expected=", ".join(sorted(NODES)),
                fix="add it to verifier/interpret/nodes.py",
            )
        operator = NODES[node.kind]
        result = operator.evaluate(node, context)
        if bounds is not None and not isinstance(graph.values[node.output].quantization, PerTensor):
            bounds[node.output] = operator.bound(node, context, bounds, result)
        limits = node.clamp if node.clamps else None
        contents[node.output] = _clamped(result, limits, graph.values[node.output].quantization)
        if observe is not None:
            observe(node.index, contents[node.output], None if bounds is None else bounds.get(node.output))
        for id in {id for id in node.inputs if id is not None and last_use[id] == node.index} - set(graph.outputs):
            contents.pop(id, None)
            if bounds is not None:
                bounds.pop(id, None)
    outputs = [contents[id] for id in graph.outputs]
    return tuple(output for output in outputs if not isinstance(output, QuantizedRows))


def _clamped(result: Operand, clamp: tuple[float, float] | None, quantization: object) -> Operand:
    """The fused clamp of a node; in int8 its limits are quantized as XNNPACK does."""
    if clamp is None or isinstance(result, QuantizedRows):
        return result
    low, high = clamp
    if isinstance(quantization, PerTensor):
        low, high = (
            float(min(max(round(limit / quantization.scale) + quantization.zero_point, QMIN), QMAX))
            if abs(limit) != float("inf")
            else float(QMIN if limit < 0 else QMAX)
            for limit in clamp
        )
    return torch.clamp(result, low, high)
