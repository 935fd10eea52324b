"""XNNPACK as a backend: a whole delegate evaluated node by node, and what its nodes say of its constants and of its int8 values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from verifier.artifact.storage import Storage
from verifier.backends.backend import Conversion, Graph, Node, Use
from verifier.backends.quantization import PerTensor
from verifier.backends.xnnpack.arithmetic import QMAX, QMIN, QuantizedRows
from verifier.backends.xnnpack.context import Context, Operand, channel_scales, constant_weights
from verifier.backends.xnnpack.cut import cut_payload
from verifier.backends.xnnpack.graph import read_graph
from verifier.backends.xnnpack.nodes import NODES, transposes_weight
from verifier.operators.operator import Role
from verifier.operators.order import Order
from verifier.operators.rounding import Sums, likely

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

    `bounds`, if given, is filled with the running error bound of every fp32 value by id (see `verifier.backends.xnnpack.bounds`). `order` and
    `sums` are those of `Context`.

    Values are dropped after their last use, so that memory follows the widest node. Raises `UnknownOperationError`.
    """
    contents: dict[int, Operand] = dict(zip(graph.inputs, inputs, strict=True))
    context = Context(graph, storage, contents, order, sums)
    last_use = {id: node.index for node in graph.nodes for id in node.inputs if id is not None}
    for node in graph.nodes:
        operator = NODES.get(node.kind, where=f"node {node.index} of a delegate")
        result = operator.evaluate(node, context)
        if bounds is not None and not isinstance(graph.values[node.output].quantization, PerTensor):
            bounds[node.output] = operator.bound(node, context, bounds, result)
        contents[node.output] = _clamped(result, node, context)
        if observe is not None:
            observe(node.index, contents[node.output], None if bounds is None else bounds.get(node.output))
        for id in {id for id in node.inputs if id is not None and last_use[id] == node.index} - set(graph.outputs):
            contents.pop(id, None)
            if bounds is not None:
                bounds.pop(id, None)
    outputs = [contents[id] for id in graph.outputs]
    return tuple(output for output in outputs if not isinstance(output, QuantizedRows))


def run_node(node: Node, context: Context) -> Operand:
    """The result of one node on the contents of its operands. Raises `UnknownOperationError`."""
    operator = NODES.get(node.kind, where=f"node {node.index} of a delegate")
    return _clamped(operator.evaluate(node, context), node, context)


def _clamped(result: Operand, node: Node, context: Context) -> Operand:
    """The fused clamp of a node; in int8 its limits are quantized as XNNPACK does."""
    if not node.clamps or node.clamp is None or isinstance(result, QuantizedRows):
        return result
    low, high = node.clamp
    quantization = context.fact(node.output).quantization
    if isinstance(quantization, PerTensor):
        low, high = (
            float(min(max(round(limit / quantization.scale) + quantization.zero_point, QMIN), QMAX))
            if abs(limit) != float("inf")
            else float(QMIN if limit < 0 else QMAX)
            for limit in node.clamp
        )
    return torch.clamp(result, low, high)


class Xnnpack:
    """XNNPACK's delegates (`verifier.backends.backend.Backend`)."""

    name = "XnnpackBackend"
    read = staticmethod(read_graph)
    run = staticmethod(run_graph)
    cut = staticmethod(cut_payload)

    @staticmethod
    def constants(graph: Graph, outside: Collection[int]) -> Iterator[Use]:
        """Uses of constants by nodes, in order, each value once."""
        seen: set[int] = set()
        for node in graph.nodes:
            for place, id in enumerate(node.inputs):
                if id is None or id in seen or (graph.values[id].constant is None and id not in outside):
                    continue
                seen.add(id)
                first = None if node.inputs[0] is None else graph.values[node.inputs[0]].quantization
                scale = first.scale if isinstance(first, PerTensor) else None
                user, at, turned = _user(graph, node, place)
                yield Use(node.index, id, _role(graph, user, at), scale, transposed=turned ^ transposes_weight(user))

    @staticmethod
    def numbers(graph: Graph, storage: Storage) -> list[Tensor]:
        """The floating-point constants of a delegate, scales included."""
        found: list[Tensor] = []
        for value in graph.values.values():
            if value.constant is not None:
                found += [constant_weights(value, storage)] if value.dtype == "fp32" else []
                found += [channel_scales(value, storage)] if value.quantization is not None else []
        return found

    @staticmethod
    def step(graph: Graph, id: int) -> float | None:
        """The quantization step of an output: its own, or that of the int8 value which it is converted from."""
        if isinstance(graph.values[id].quantization, PerTensor):
            return 1.0
        makers = {node.output: node for node in graph.nodes}
        while id in makers:
            source, operator = makers[id].inputs[0], NODES.find(makers[id].kind)
            if source is None or operator is None:
                return None
            if operator.converts:
                before = graph.values[source].quantization
                return before.scale if isinstance(before, PerTensor) else None
            if not operator.moves:
                return None
            id = source
        return None

    @staticmethod
    def conversions(graph: Graph) -> list[Conversion]:
        """Nodes that convert an input to static int8."""
        found = []
        for node in graph.nodes:
            target, operator, source = graph.values[node.output].quantization, NODES.find(node.kind), node.inputs[0]
            if operator is not None and operator.converts and source in graph.inputs and isinstance(target, PerTensor):
                found.append(Conversion(node.index, source, target))
        return found

    @staticmethod
    def is_linear(node: Node) -> bool:
        """Whether a node multiplies with a matrix of weights."""
        operator = NODES.find(node.kind)
        return operator is not None and "linear" in operator.roles


def _user(graph: Graph, node: Node, place: int) -> tuple[Node, int, bool]:
    """The node that computes with a constant, behind those that only give it another shape, with its place there; and whether it was transposed."""
    turned = False
    for later in graph.nodes[node.index + 1 :]:
        operator = NODES.find(node.kind)
        if operator is None or not operator.moves or operator.roles:
            break
        if node.output in later.inputs:
            turned ^= node.attributes.get("perm") in ([1, 0], (1, 0))
            node, place = later, later.inputs.index(node.output)
    return node, place, turned


def _role(graph: Graph, node: Node, place: int) -> Role:
    """The role of a constant among a node's operands: by the node's record, or for what is added by the records of those that use the sum."""
    operator = NODES.find(node.kind)
    if operator is None or not operator.roles:
        return "unknown"
    role = operator.roles[min(place, len(operator.roles) - 1)]
    if role != "addend":
        return role
    following = NODES.known(n.kind for n in graph.nodes if node.output in n.inputs)
    return next((user.addend for user in following if user.addend != "addend"), "addend")
