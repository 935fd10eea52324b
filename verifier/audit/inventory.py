"""All constants of a program, each with the part it plays: found by what uses it, never by a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from verifier.artifact.plan import Instruction, Plan, TensorValue
from verifier.artifact.program import METHODS, Artifact
from verifier.artifact.xnnpack import Graph, GraphValue, Node, Quantization

Role = Literal[
    "linear",
    "convolution",
    "bias",
    "norm weight",
    "norm bias",
    "epsilon",
    "factor",
    "mean",
    "std",
    "addend",
    "rope",
    "mask",
    "embedding",
    "embedding scales",
    "unknown",
]


@dataclass(frozen=True)
class Constant:
    """One use of a constant. `value` describes it: an EValue of the program or a value of a delegate's graph.

    `quantization` are the parameters with which an int8 EValue enters a delegate. `partner` is the weight that a bias
    belongs to, by its place in the inventory. `input_scale` is the scale of the activation that meets a weight. `epsilon`
    is that of its layer norm. `order` counts constants of the same role before it in its method.
    """

    method: str
    instruction: int
    node: int | None
    role: Role
    value: TensorValue | GraphValue
    quantization: Quantization = None
    partner: int | None = None
    input_scale: float | None = None
    epsilon: float | None = None
    order: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.value.sizes if isinstance(self.value, TensorValue) else self.value.dims


def take_inventory(artifact: Artifact) -> list[Constant]:
    """Every use of every constant by the three methods, in program order. Raises `ArtifactError`."""
    found: list[Constant] = []
    for name in METHODS:
        plan = artifact.plans[name]
        for step in plan.instructions:
            if step.kind == "delegate" and step.name == "XnnpackBackend":
                found.extend(
                    _of_delegate(
                        plan, step, artifact.graph(plan, step), artifact.given_and_made(plan, step)[0], len(found)
                    )
                )
            elif step.kind == "kernel":
                found += _of_kernel(plan, step, len(found))
    counts: Counter[tuple[str, str]] = Counter()
    ordered = []
    for constant in found:
        ordered.append(replace(constant, order=counts[constant.method, constant.role]))
        counts[constant.method, constant.role] += 1
    return ordered


def _of_kernel(plan: Plan, step: Instruction, base: int) -> list[Constant]:
    constants = []
    for position, index in enumerate(step.args):
        value = plan.values[index]
        if not isinstance(value, TensorValue) or value.constant is None or index in step.args[:position]:
            continue
        role: Role = "unknown"
        partner = None
        epsilon = None
        if step.name == "aten::native_layer_norm.out":
            role = "norm weight" if position == 2 else "norm bias"
            partner = base if position == 3 else None
            number = plan.values[step.args[4]]
            epsilon = number if isinstance(number, float) else None
        elif "embedding" in step.name:
            role = "embedding" if position == 0 else "embedding scales"
        elif step.name == "aten::slice_copy.Tensor_out" and value.dtype == "FLOAT":
            role = "rope"
        elif value.dtype == "BOOL":
            role = "mask"
        elif step.name == "aten::mul.out" and value.dtype == "FLOAT":  # what was not delegated
            role = _factor(value.sizes)
        constants.append(Constant(plan.name, step.index, None, role, value, partner=partner, epsilon=epsilon))
    return constants


def _of_delegate(plan: Plan, step: Instruction, graph: Graph, given: tuple[int, ...], base: int) -> Iterator[Constant]:
    outside = dict(zip(graph.inputs, given, strict=True))
    seen: set[int] = set()
    for node in graph.nodes:
        weight_place: int | None = None
        for position, id in enumerate(node.inputs):
            if id is None or id in seen:
                continue
            inner = graph.values[id]
            outer = plan.values[outside[id]] if id in outside else None
            if inner.constant is None and not (isinstance(outer, TensorValue) and outer.constant is not None):
                continue
            seen.add(id)
            role = _role(graph, node, position, inner)
            if role in ("linear", "convolution"):
                weight_place = base + len(seen) - 1
            value = outer if isinstance(outer, TensorValue) else inner
            yield Constant(
                plan.name,
                step.index,
                node.index,
                role,
                value,
                quantization=inner.quantization,
                partner=weight_place if role == "bias" else None,
                input_scale=_input_scale(graph, node),
            )


def _input_scale(graph: Graph, node: Node) -> float | None:
    first = node.inputs[0]
    quantization = None if first is None else graph.values[first].quantization
    return getattr(quantization, "scale", None)


def _role(graph: Graph, node: Node, position: int, value: GraphValue) -> Role:
    if node.kind in ("XNNFullyConnected", "XNNConv2d"):
        return "bias" if position == 2 else "linear" if node.kind == "XNNFullyConnected" else "convolution"
    if node.kind == "XNNSubtract":
        return "mean"
    if node.kind == "XNNDiv":
        return "std"
    if node.kind == "XNNMultiply":
        return _factor(value.dims) if value.dtype == "fp32" else "factor"
    following = [n.kind for n in graph.nodes if node.output in n.inputs]
    if node.kind == "XNNAdd":
        return "epsilon" if "XNNReciprocalSquareRoot" in following else "addend"
    return "addend" if node.kind.startswith("XNNConcatenate") else "unknown"


def _factor(sizes: tuple[int, ...]) -> Role:
    return "norm weight" if len(sizes) == 1 and sizes[0] > 1 else "factor"
