"""All constants of a program, each with the part it plays: found by what uses it, never by a name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from verifier.artifact.plan import Instruction, Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.backends.backend import GraphValue
from verifier.backends.calls import BACKENDS, given_and_made, graph_of, results_of
from verifier.backends.quantization import Quantization
from verifier.families.conventions import ROLES
from verifier.operators.operator import Role
from verifier.operators.registry import OPERATORS


@dataclass(frozen=True)
class Constant:
    """One use of a constant. `value` describes it: an EValue of the program or a value of a delegate's graph.

    `quantization` are the parameters with which an int8 EValue enters a delegate. `partner` is the weight that a bias
    belongs to, by its place in the inventory. `input_scale` is the scale of the activation that meets a weight. `epsilon`
    is that of its layer norm. `order` counts constants of the same role before it in its method. `transposed` is a weight [K, N]. `scales` are those of an
    embedding table.
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
    transposed: bool = False
    scales: TensorValue | None = None

    @property
    def stored_quantization(self) -> Quantization:
        """How its own integers stand for numbers, where a delegate holds it."""
        return self.value.quantization if isinstance(self.value, GraphValue) else None

    @property
    def is_quantized(self) -> bool:
        """Whether it is a delegate's constant of integers."""
        return self.stored_quantization is not None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.value.sizes if isinstance(self.value, TensorValue) else self.value.dims


def take_inventory(artifact: Artifact) -> list[Constant]:
    """Every use of every constant by the three methods, in program order. Raises `ArtifactError`, and `UnknownOperationError` for
    a delegate that nobody can read: its constants are not known."""
    found: list[Constant] = []
    for name in ROLES:
        plan = artifact.plans[name]
        for step in plan.instructions:
            if step.kind == "delegate":
                found += _of_delegate(artifact, plan, step, len(found))
            elif step.kind == "kernel":
                found += _of_kernel(artifact, plan, step, len(found))
    counts: Counter[tuple[str, str]] = Counter()
    ordered = []
    for constant in found:
        ordered.append(replace(constant, order=counts[constant.method, constant.role]))
        counts[constant.method, constant.role] += 1
    return ordered


def _of_kernel(artifact: Artifact, plan: Plan, step: Instruction, base: int) -> list[Constant]:
    constants = []
    operator = OPERATORS.find(step.name)
    roles: tuple[Role, ...] = () if operator is None else operator.roles
    for place, index in enumerate(step.args):
        value = plan.values[index]
        if not isinstance(value, TensorValue) or value.constant is None or index in step.args[:place]:
            continue
        role: Role = roles[min(place, len(roles) - 1)] if roles else "unknown"
        if role == "unknown" and not place:
            role = _role_behind(artifact, plan, step)
        if role in ("rope", "factor", "addend", "unknown") and value.dtype != "FLOAT":
            role = "mask" if value.dtype == "BOOL" else "unknown"
        if role == "factor":
            role = _factor(value.sizes)
        scales = plan.values[step.args[place + 1]] if role == "embedding" else None
        constants.append(
            Constant(
                plan.name,
                step.index,
                None,
                role,
                value,
                partner=base if role == "norm bias" else None,
                epsilon=_epsilon(plan, step, roles),
                scales=scales if isinstance(scales, TensorValue) and scales.constant is not None else None,
            )
        )
    return constants


def _role_behind(artifact: Artifact, plan: Plan, step: Instruction) -> Role:
    """The role of what an instruction makes of a constant, by the instruction behind it: a constant may be reshaped or copied before it is used."""
    waiting = list(results_of(artifact, plan, step))
    for later in plan.instructions[step.index + 1 :]:
        places = [place for place, index in enumerate(later.args) if index in waiting]
        if not places:
            continue
        if later.kind == "delegate":
            graph = graph_of(artifact, plan, later)
            backend = BACKENDS.get(later.name, where=f"{plan.name}, instruction {later.index}")
            inputs = dict(zip(given_and_made(artifact, plan, later)[0], graph.inputs, strict=True))
            used = {inputs[later.args[place]] for place in places if later.args[place] in inputs}
            return next((use.role for use in backend.constants(graph, used) if use.id in used), "unknown")
        operator = OPERATORS.find(later.name)
        if operator is None or later.kind != "kernel":
            return "unknown"
        if operator.roles:
            return operator.roles[min(places[0], len(operator.roles) - 1)]
        waiting += results_of(artifact, plan, later)
    return "unknown"


def _epsilon(plan: Plan, step: Instruction, roles: tuple[Role, ...]) -> float | None:
    number = plan.values[step.args[roles.index("epsilon")]] if "epsilon" in roles else None
    return number if isinstance(number, float) else None


def _of_delegate(artifact: Artifact, plan: Plan, step: Instruction, base: int) -> Iterator[Constant]:
    graph = graph_of(artifact, plan, step)
    given = dict(zip(graph.inputs, given_and_made(artifact, plan, step)[0], strict=True))
    outside = {
        id: value
        for id, index in given.items()
        if isinstance(value := plan.values[index], TensorValue) and value.constant is not None
    }
    backend = BACKENDS.get(step.name, where=f"{plan.name}, instruction {step.index}")
    weights: dict[int, int] = {}  # by node, the place of its weight in the inventory
    for place, use in enumerate(backend.constants(graph, outside.keys())):
        inner, role = graph.values[use.id], use.role
        if role in ("linear", "convolution"):
            weights[use.node] = base + place
        if role == "factor" and inner.dtype == "fp32":
            role = _factor(inner.dims)
        yield Constant(
            plan.name,
            step.index,
            use.node,
            role,
            _described(plan, given, use.id, inner),
            quantization=inner.quantization,
            partner=weights.get(use.node) if role == "bias" else None,
            input_scale=use.input_scale,
            transposed=use.transposed,
        )


def _described(plan: Plan, given: dict[int, int], id: int, inner: GraphValue) -> TensorValue | GraphValue:
    """The EValue behind a value of a delegate, or the value itself."""
    outer = plan.values[given[id]] if id in given else None
    return outer if isinstance(outer, TensorValue) else inner


def _factor(sizes: tuple[int, ...]) -> Role:
    """The weight of an RMS norm multiplies along the last dimension, a factor all elements alike."""
    return "norm weight" if sizes and sizes[-1] > 1 and math.prod(sizes) == sizes[-1] else "factor"
