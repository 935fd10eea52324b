"""The program run instruction by instruction: EValues, delegates, and state that outlives a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.dtypes import PROGRAM
from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue, Value
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Storage
from verifier.backends.backend import Backend, Graph, NodeObserver
from verifier.backends.calls import BACKENDS, elided_views, graph_of, operands_of, results_of, written_by
from verifier.core.memory import untouched_zeros
from verifier.operators.operator import ProgramFaultError, UnknownOperationError, dtype_of
from verifier.operators.order import Order
from verifier.operators.registry import OPERATORS
from verifier.operators.rounding import Sums, likely

Content = Any
"""What an EValue holds: a tensor, a number, a list of them."""


@dataclass(frozen=True)
class Step:
    """One instruction with what went in and out: `inputs` by number of EValue, `outputs` in the order of the arguments."""

    instruction: Instruction
    inputs: dict[int, Content]
    outputs: dict[int, Content]


Observer = Callable[[Step], None]


def constant_tensor(value: TensorValue, storage: Storage) -> Tensor:
    """A constant EValue's contents, copied from the file. Raises `UnknownOperationError` for a dtype or layout without semantics."""
    assert value.constant is not None
    stored = PROGRAM[value.dtype].numpy
    if stored is None or value.dim_order != tuple(range(len(value.sizes))):
        supported = ", ".join(name for name, dtype in PROGRAM.items() if dtype.numpy)
        raise UnknownOperationError(
            f"cannot evaluate a constant of dtype {value.dtype} and dim order {value.dim_order}, only {supported} in their own order are supported"
        )
    return torch.from_numpy(np.array(storage.read(value.constant)).view(stored).reshape(value.sizes))


def reshaped(content: Content, value: Value) -> Content:
    """Contents of an EValue in the shape of another one; what is no tensor as it is."""
    if not isinstance(content, Tensor) or not isinstance(value, TensorValue):
        return content
    return content.reshape(value.sizes) if content.numel() == math.prod(value.sizes) else content


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
        """The delegate that an instruction calls. Raises `UnknownOperationError` for one that nobody can read."""
        return graph_of(self.artifact, self.plan, step)

    def backend(self, step: Instruction) -> Backend:
        """The backend of the delegate that an instruction calls."""
        return BACKENDS.get(step.name, where=f"{self.plan.name}, instruction {step.index}")

    @cached_property
    def views(self) -> dict[int, int]:
        """EValues that are another one in another shape although no instruction makes them."""
        return elided_views(self.plan, self.operands, self._writes)

    def _writes(self, step: Instruction) -> tuple[int, ...]:
        changed = written_by(step)
        return self.results(step) if changed is None else (*self.results(step), changed)

    def with_sources(self, indices: Iterable[int]) -> set[int]:
        """Some EValues, and those that they are another shape of."""
        return {one for index in indices for one in (index, self.views.get(index, index))}

    def results(self, step: Instruction) -> tuple[int, ...]:
        """Numbers of the EValues that an instruction computes, in order."""
        return results_of(self.artifact, self.plan, step)

    def operands(self, step: Instruction) -> tuple[int, ...]:
        """Numbers of the EValues that an instruction reads, lists included by their items."""
        return operands_of(self.artifact, self.plan, step)


class Machine:
    """A loaded program: calls share the state of their method, as on the runtime."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.methods = {name: MethodState(artifact, plan) for name, plan in artifact.plans.items()}

    def call(self, method: str, inputs: Sequence[Tensor], *, observe: Observer | None = None) -> list[Content]:
        """Run a method. `observe` sees every instruction. Raises `UnknownOperationError`, `ProgramFaultError`."""
        state = self.methods[method]
        plan = state.plan
        values: dict[int, Content] = dict(zip(plan.inputs, inputs, strict=True)) | dict(state.state)
        last_use = {i: step.index for step in plan.instructions for i in state.with_sources(state.operands(step))}
        for step in plan.instructions:
            operands = {index: self.fetch(state, values, index) for index in state.operands(step)}
            outputs = evaluate(state, step, operands)
            values |= outputs
            if observe is not None:
                observe(Step(step, operands, outputs))
            for index in state.with_sources(operands) - state.state.keys() - state.with_sources(plan.outputs):
                if last_use[index] == step.index:
                    values.pop(index, None)
        return [self.fetch(state, values, index) for index in plan.outputs]

    def fetch(self, state: MethodState, values: dict[int, Content], index: int) -> Content:
        """The contents of an EValue: computed, given, constant, a number, or state that begins as zeros."""
        if index in values:
            return values[index]
        value = state.plan.values[index]
        if index in state.views:
            return reshaped(self.fetch(state, values, state.views[index]), value)
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
    operands: dict[int, Content],
    *,
    observe: NodeObserver | None = None,
    bounds: dict[int, Tensor] | None = None,
    order: Order | None = None,
    sums: Sums = likely,
) -> dict[int, Content]:
    """The results of one instruction for given contents of its operands. A cache among them is written in place.

    `bounds`, if given, is filled with the error bound of every fp32 result by number of EValue: zero where a kernel only
    moves values, absent where the result is of integers. `order` has products summed as a kernel sums them, and
    `sums` is the rule for what a sum may be off by (`Context`).
    """
    plan = state.plan
    results = state.results(step)
    where = f"{plan.name}, instruction {step.index}"
    if step.kind == "delegate":
        graph = state.graph(step)
        inputs = [operands[index] for index in state.operands(step)]
        inner: dict[int, Tensor] | None = None if bounds is None else {}
        backend = state.backend(step)
        outputs = backend.run(graph, state.storage, inputs, observe=observe, bounds=inner, order=order, sums=sums)
        if bounds is not None and inner is not None:
            bounds |= {result: inner[id] for result, id in zip(results, graph.outputs, strict=True) if id in inner}
        return dict(zip(results, outputs, strict=True))
    if step.kind == "move":
        return {results[0]: operands[step.args[0]]}
    if step.kind == "free":
        return {}
    if step.kind != "kernel":
        raise UnknownOperationError(
            f"cannot evaluate instruction {step.name}, only kernel, delegate, move and free are supported", where=where
        )
    operator = OPERATORS.get(step.name, where=where)
    facts = [fact if isinstance(fact := plan.values[index], TensorValue) else None for index in results]
    args = [_unboxed(plan, index, operands) for index in step.args]
    made = (
        operator.evaluate(args, facts) if order is None or operator.in_order is None else operator.in_order(args, order)
    )
    if bounds is not None:
        pairs = zip(results, operator.bound(args, made, sums), strict=True)
        bounds |= {result: bound for result, bound in pairs if bound is not None}
    return {index: content for index, content in zip(results, made, strict=True) if content is not None}


def _unboxed(plan: Plan, index: int, operands: dict[int, Content]) -> Content:
    value = plan.values[index]
    if isinstance(value, ListValue):
        return [None if i == -1 else operands.get(i) for i in value.items] if value.boxed else list(value.items)
    return operands.get(index, None if isinstance(value, TensorValue) else value)
