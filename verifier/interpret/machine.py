"""The program run instruction by instruction: EValues, delegates, and state that outlives a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Storage
from verifier.artifact.xnnpack import Graph
from verifier.interpret.delegate import NodeObserver, run_graph
from verifier.interpret.errors import ProgramFaultError, UnknownOperationError
from verifier.interpret.kernels import KERNELS, dtype_of
from verifier.interpret.order import Order
from verifier.interpret.rounding import Sums, likely
from verifier.memory import untouched_zeros

_NUMPY = {"FLOAT": np.float32, "CHAR": np.int8, "BYTE": np.uint8, "LONG": np.int64, "INT": np.int32, "BOOL": np.bool_}


@dataclass(frozen=True)
class Step:
    """One instruction with what went in and out: `inputs` by number of EValue, `outputs` in the order of the arguments."""

    instruction: Instruction
    inputs: dict[int, Any]
    outputs: dict[int, Any]


Observer = Callable[[Step], None]


def constant_tensor(value: TensorValue, storage: Storage) -> Tensor:
    """A constant EValue's contents, copied from the file. Raises `UnknownOperationError` for a dtype or layout without semantics."""
    assert value.constant is not None
    if value.dtype not in _NUMPY or value.dim_order != tuple(range(len(value.sizes))):
        raise UnknownOperationError("a constant of this kind", got=value)
    return torch.from_numpy(np.array(storage.read(value.constant)).view(_NUMPY[value.dtype]).reshape(value.sizes))


@dataclass
class MethodState:
    """A method, its decoded delegates, and the EValues that outlive a call: its caches."""

    artifact: Artifact
    plan: Plan
    state: dict[int, Tensor] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        """Where constants are read from."""
        return self.artifact.storage

    def graph(self, step: Instruction) -> Graph:
        """The delegate that an instruction calls."""
        if step.name != "XnnpackBackend":
            raise UnknownOperationError("a delegate without semantics", got=step.name, expected="XnnpackBackend")
        return self.artifact.graph(self.plan, step)

    def results(self, step: Instruction) -> tuple[int, ...]:
        """Numbers of the EValues that an instruction computes, in order."""
        if step.kind == "delegate":
            self.graph(step)  # refuses another backend by name
        return self.artifact.results(self.plan, step)

    def operands(self, step: Instruction) -> tuple[int, ...]:
        """Numbers of the EValues that an instruction reads, lists included by their items."""
        if step.kind == "delegate":
            self.graph(step)  # refuses another backend by name
            return self.artifact.given_and_made(self.plan, step)[0]
        if step.kind != "kernel":
            return step.args[:1]
        results = set(self.results(step))
        found: list[int] = []
        for index in step.args:
            value = self.plan.values[index]
            if index in results and not step.name.endswith("copy_"):
                continue
            if isinstance(value, ListValue) and value.boxed:
                found += [] if results & set(value.items) else [item for item in value.items if item != -1]
            else:
                found.append(index)
        return tuple(found)


class Machine:
    """A loaded program: calls share the state of their method, as on the runtime."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.methods = {name: MethodState(artifact, plan) for name, plan in artifact.plans.items()}

    def call(self, method: str, inputs: Sequence[Tensor], *, observe: Observer | None = None) -> list[Any]:
        """Run a method. `observe` sees every instruction. Raises `UnknownOperationError`, `ProgramFaultError`."""
        state = self.methods[method]
        plan = state.plan
        values: dict[int, Any] = dict(zip(plan.inputs, inputs, strict=True)) | dict(state.state)
        last_use = {index: step.index for step in plan.instructions for index in state.operands(step)}
        for step in plan.instructions:
            operands = {index: self.fetch(state, values, index) for index in state.operands(step)}
            outputs = evaluate(state, step, operands)
            values |= outputs
            if observe is not None:
                observe(Step(step, operands, outputs))
            for index in operands.keys() - state.state.keys() - set(plan.outputs):
                if last_use[index] == step.index:
                    values.pop(index, None)
        return [self.fetch(state, values, index) for index in plan.outputs]

    def fetch(self, state: MethodState, values: dict[int, Any], index: int) -> Any:
        """The contents of an EValue: computed, given, constant, a number, or state that begins as zeros."""
        if index in values:
            return values[index]
        value = state.plan.values[index]
        if not isinstance(value, TensorValue):
            return value
        if value.constant is not None:
            return constant_tensor(value, state.storage)
        if value.place is None:
            raise ProgramFaultError(f"EValue {index} is read but nothing provides it")
        # read before anything wrote it: a mutable buffer. The runtime's arenas begin as zeros.
        state.state[index] = values[index] = untouched_zeros(value.sizes, dtype_of(value.dtype))
        return values[index]


def evaluate(
    state: MethodState,
    step: Instruction,
    operands: dict[int, Any],
    *,
    observe: NodeObserver | None = None,
    bounds: dict[int, Tensor] | None = None,
    order: Order | None = None,
    sums: Sums = likely,
) -> dict[int, Any]:
    """The results of one instruction for given contents of its operands. A cache among them is written in place.

    `bounds`, if given, is filled with the error bound of every fp32 result by number of EValue: zero where a kernel only
    moves values, absent where the result is of integers. `order` has products summed as a kernel sums them, and
    `sums` is the rule for what a sum may be off by (`Context`).
    """
    plan = state.plan
    results = state.results(step)
    if step.kind == "delegate":
        graph = state.graph(step)
        inputs = [operands[index] for index in state.operands(step)]
        inner: dict[int, Tensor] | None = None if bounds is None else {}
        outputs = run_graph(graph, state.storage, inputs, observe=observe, bounds=inner, order=order, sums=sums)
        if bounds is not None and inner is not None:
            bounds |= {result: inner[id] for result, id in zip(results, graph.outputs, strict=True) if id in inner}
        return dict(zip(results, outputs, strict=True))
    if step.kind == "move":
        return {results[0]: operands[step.args[0]]}
    if step.kind == "free":
        return {}
    if step.kind != "kernel" or step.name not in KERNELS:
        raise UnknownOperationError(
            "an instruction without semantics",
            got=f"{step.name} (instruction {step.index} of {plan.name})",
            expected="an operator of verifier/interpret/kernels.py",
            fix="add it there, with its source",
        )
    facts = [fact if isinstance(fact := plan.values[index], TensorValue) else None for index in results]
    args = [_unboxed(plan, index, operands) for index in step.args]
    operator = KERNELS[step.name]
    made = (
        operator.evaluate(args, facts) if order is None or operator.in_order is None else operator.in_order(args, order)
    )
    if bounds is not None:
        pairs = zip(results, operator.bound(args, made, sums), strict=True)
        bounds |= {result: bound for result, bound in pairs if bound is not None}
    return {index: content for index, content in zip(results, made, strict=True) if content is not None}


def _unboxed(plan: Plan, index: int, operands: dict[int, Any]) -> Any:
    value = plan.values[index]
    if isinstance(value, ListValue):
        return [None if i == -1 else operands.get(i) for i in value.items] if value.boxed else list(value.items)
    return operands.get(index, None if isinstance(value, TensorValue) else value)
