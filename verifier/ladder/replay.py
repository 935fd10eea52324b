"""The runtime's trace against the interpreter, instruction by instruction.

Two errors for every tensor. *Local*: the interpreter evaluates one instruction on what the runtime itself fed it, so that
only this instruction is in question. *Propagated*: the interpreter's own run from the first instruction on, which shows what
accumulates. The replay also checks that each operand still holds what its producer wrote: a difference means that two tensors
share memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.plan import Instruction, TensorValue
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Span, Storage
from verifier.backends.calls import is_view, written_by
from verifier.backends.xnnpack.arithmetic import QMAX, QMIN
from verifier.core.memory import untouched_zeros
from verifier.interpret.machine import Content, Machine, MethodState, Step, constant_tensor, evaluate, reshaped
from verifier.ladder.finite import constants_of, has_nan, is_computed, is_finite, non_finite
from verifier.ladder.limits import LINEAR, over
from verifier.ladder.records import ChangedOperand, Compared, RangeUse, Replay, is_linear
from verifier.ladder.stages import Again, settle_result
from verifier.ladder.trace import CallTrace
from verifier.operators.operator import ProgramFaultError
from verifier.operators.registry import OPERATORS

Tapped = dict[tuple[int, int], Tensor]
"""The runtime's own contents of some EValues, by call and number of the EValue."""


def clipped_share(x: Tensor, *, scale: float, zero_point: int) -> float:
    """The share of elements of an fp32 tensor that int8 with this scale and zero point cuts off."""
    integers = (x / scale).round() + zero_point
    return float((~((integers >= QMIN) & (integers <= QMAX))).float().mean())  # NaN is in no range


class Replayer:
    """Goes through the calls of one loaded program in order; keeps the state that outlives a call, twice: as the runtime's
    own values make it, and as the interpreter's make it."""

    def __init__(
        self,
        artifact: Artifact,
        *,
        recipe: Storage | None = None,
        watched: frozenset[tuple[str, int]] = frozenset(),
        seen: Callable[[], None] = lambda: None,
    ) -> None:
        """`recipe` is the file's storage with the recipe's constants; `watched` are the EValues to tap, by method. `seen` is called
        behind every instruction."""
        self.machine, self.shadow = Machine(artifact), Machine(artifact)
        self.recipe = None if recipe is None else Machine(replace(artifact, storage=recipe))
        self.watched, self.seen = watched, seen
        self.tapped: Tapped = {}
        self.compared: list[Compared] = []
        self.constants: list[Compared] = []
        self.changed_operands: list[ChangedOperand] = []
        self.ranges: list[RangeUse] = []
        self.covered: dict[tuple[str, int], set[int]] = {}
        self.overflowed = False  # whether some instruction so far made NaN or infinity of numbers
        self.calls = 0
        self._same: dict[Span, bool] = {}

    def is_as_the_recipe_has_it(self, span: Span) -> bool:
        """Whether the recipe gives these bytes of the file, or says nothing of them."""
        if self.recipe is None or span not in self.recipe.artifact.storage.overrides:
            return True
        if span not in self._same:
            stored = self.machine.artifact.storage.read(span)
            self._same[span] = bool(np.array_equal(self.recipe.artifact.storage.read(span), stored))
        return self._same[span]

    def call(self, method: str, inputs: list[Tensor], trace: CallTrace) -> None:
        """Compare one call. Raises `UnknownOperationError` for an operation without semantics."""
        state = self.shadow.methods[method]
        follower = _Follower(self, state, dict(zip(state.plan.inputs, inputs, strict=True)), trace)
        self.machine.call(method, [x.clone() for x in inputs], observe=follower.observe)
        self.calls += 1

    def finish(self) -> Replay:
        """What was found so far."""
        computing = {
            method: tuple(step.index for step in state.plan.instructions if computes(step))
            for method, state in self.shadow.methods.items()
            if state.plan.instructions
        }
        covered: dict[str, set[int]] = {}
        for (method, _), found in self.covered.items():
            covered.setdefault(method, set()).update(found)
        return Replay(
            tuple(self.compared),
            tuple(self.constants),
            tuple(self.changed_operands),
            computing,
            {method: tuple(sorted(found)) for method, found in covered.items()},
            {call: tuple(sorted(found)) for (_, call), found in self.covered.items()},
            tuple(self.ranges),
        )


def _constants(state: MethodState, step: Instruction) -> set[Span]:
    """Where the constants that an instruction uses lie, scales of groups and channels included."""
    values: list[Content] = [state.plan.values[index] for index in state.operands(step)]
    values += state.graph(step).values.values() if step.kind == "delegate" else []
    spans = [getattr(value, "constant", None) for value in values]
    spans += [getattr(getattr(value, "quantization", None), "scales", None) for value in values]
    return {span for span in spans if isinstance(span, Span)}


def computes(step: Instruction) -> bool:
    """Whether an instruction makes a tensor; what only handles numbers and sizes, or frees, does not."""
    operator = OPERATORS.find(step.name)
    return step.kind == "delegate" or (step.kind == "kernel" and (operator is None or operator.computes))


class _Follower:
    """Sees the interpreter's steps of one call and holds each against the trace."""

    def __init__(self, replayer: Replayer, state: MethodState, inputs: dict[int, Tensor], trace: CallTrace) -> None:
        self.replayer, self.state, self.trace = replayer, state, trace
        self.known: dict[int, Content] = dict(inputs)
        self.makers: dict[int, int] = {}
        self.untraced: set[int] = set()  # EValues whose runtime contents nobody recorded: the interpreter's stand in
        self.last_use = {
            index: step.index for step in state.plan.instructions for index in state.with_sources(state.operands(step))
        }

    def observe(self, step: Step) -> None:
        self.replayer.seen()
        instruction = step.instruction
        traced = [torch.from_numpy(tensor.array()) for tensor in self.trace.get(instruction.index, ())]
        operands = {index: self._content(index, value) for index, value in step.inputs.items()}
        operands |= {
            i: self.state.state.setdefault(i, untouched_zeros(v.shape, v.dtype))
            for i, v in step.inputs.items()
            if self._is_state(i, v)
        }
        if instruction.kind == "delegate":
            handed, traced = self._traced_call(instruction, traced)
            self._check_operands(instruction, operands, handed)
            self._note_ranges(instruction, handed)
            operands |= handed
        bounds: dict[int, Tensor] = {}
        try:
            expected = evaluate(self.state, instruction, operands, bounds=bounds)
        except ProgramFaultError:
            return
        before = len(self.replayer.compared)
        self._remember(step, expected, operands, traced, bounds)
        used = _constants(self.state, instruction)
        if self.replayer.recipe is not None and used:
            own = self.replayer.compared[before:]
            if all(map(self.replayer.is_as_the_recipe_has_it, used)):  # the same constants give the same again
                self.replayer.constants += [replace(record, propagated_db=None) for record in own]
            else:
                self._compare_with_recipe(step, operands, traced, own)
        for index in {*self.state.operands(instruction), *self.state.results(instruction)}:
            content = self.known.get(index)
            if (self.state.plan.name, index) in self.replayer.watched and isinstance(content, Tensor):
                self.replayer.tapped[self.replayer.calls, index] = content
        self._forget(instruction)

    def _content(self, index: int, value: Content) -> Content:
        """The runtime's contents of an operand; `value`, the interpreter's, where nobody recorded them."""
        source = self.state.views.get(index)
        if source is not None and source in self.known:
            return reshaped(self.known[source], self.state.plan.values[index])
        return self.known.get(index, self.state.state.get(index, value) if isinstance(value, Tensor) else value)

    def _forget(self, instruction: Instruction) -> None:
        """Drop what no later instruction reads: attention of 577 tokens alone leaves 100 MB a layer."""
        operands = self.state.with_sources(self.state.operands(instruction))
        for index in operands.union(self.state.results(instruction)):
            if self.last_use.get(index, -1) <= instruction.index and isinstance(self.known.get(index), Tensor):
                del self.known[index]

    def _traced_call(self, instruction: Instruction, traced: list[Tensor]) -> tuple[dict[int, Tensor], list[Tensor]]:
        """What the tracer has of a delegate's call: operands by number of EValue, and results in order. It records all tensors among the
        arguments, those that the delegate does not read too."""
        tensors = [i for i in instruction.args if isinstance(self.state.plan.values[i], TensorValue)]
        recorded = dict(zip(tensors, traced, strict=False))
        operands = {i: recorded[i] for i in self.state.operands(instruction) if i in recorded}
        return operands, [recorded[i] for i in self.state.results(instruction) if i in recorded]

    def _note_ranges(self, instruction: Instruction, handed: dict[int, Tensor]) -> None:
        """How much of what a delegate is handed lies outside the int8 range that it is converted to."""
        graph = self.state.graph(instruction)
        tensors = dict(zip(graph.inputs, handed.values(), strict=False))
        for conversion in self.state.backend(instruction).conversions(graph):
            tensor, target = tensors.get(conversion.id), conversion.target
            if tensor is not None and tensor.is_floating_point():
                clipped = clipped_share(tensor, scale=target.scale, zero_point=target.zero_point)
                where = self.replayer.calls, self.state.plan.name, instruction.index
                self.replayer.ranges.append(RangeUse(*where, conversion.node, clipped))

    def _compare_with_recipe(
        self, step: Step, operands: dict[int, Content], traced: list[Tensor], own: list[Compared]
    ) -> None:
        """The same instruction on the same operands, with the constants that the recipe gives; `own` are its results with the file's."""
        assert self.replayer.recipe is not None
        recipe = self.replayer.recipe.methods[self.state.plan.name]
        bounds: dict[int, Tensor] = {}
        given = operands | {
            index: constant_tensor(value, recipe.storage)
            for index in operands
            if isinstance(value := self.state.plan.values[index], TensorValue) and value.constant is not None
        }
        expected = evaluate(recipe, step.instruction, given, bounds=bounds)
        tensors = [index for index in self.state.results(step.instruction) if isinstance(expected.get(index), Tensor)]
        again = Again(recipe, step.instruction, given)
        untipped = {record.result for record in own if is_linear(record) and LINEAR.admits(record.sqnr_db)}
        for place, (index, actual) in enumerate(zip(tensors, traced, strict=False)):
            found = self._settled(step, place, index, actual, expected[index], bounds.get(index), again)
            found = replace(found, untipped=place in untipped and again.has_dynamic_rows)
            self.replayer.constants.append(replace(self._judged(found, operands), propagated_db=None))

    def _is_state(self, index: int, value: Content) -> bool:
        plan = self.state.plan
        return isinstance(value, Tensor) and index in self.replayer.machine.methods[plan.name].state

    def _check_operands(
        self, instruction: Instruction, operands: dict[int, Content], handed: dict[int, Tensor]
    ) -> None:
        for place, (index, tensor) in enumerate(handed.items()):
            source = self.state.views.get(index, index)
            made = operands.get(index) if source not in self.untraced else None
            if not isinstance(made, Tensor) or made.shape != tensor.shape or made.dtype != tensor.dtype:
                continue
            differing = int((made.view(-1).ne(tensor.view(-1)) & ~(made.isnan() & tensor.isnan()).view(-1)).sum())
            if differing:
                call, method = self.replayer.calls, self.state.plan.name
                producer = self.makers.get(source)
                self.replayer.changed_operands.append(
                    ChangedOperand(call, method, instruction.index, place, differing, producer)
                )

    def _remember(
        self,
        step: Step,
        expected: dict[int, Content],
        operands: dict[int, Content],
        traced: list[Tensor],
        bounds: dict[int, Tensor],
    ) -> None:
        """Compare results, and keep the runtime's own for the instructions that follow."""
        instruction, method = step.instruction, self.state.plan.name
        tensors = [index for index in self.state.results(instruction) if isinstance(expected.get(index), Tensor)]
        recorded = dict(zip(tensors, traced, strict=False))
        again = Again(self.state, instruction, operands)
        for place, index in enumerate(tensors):
            self.makers[index] = instruction.index
            if index not in recorded:
                self.known[index] = expected[index]
                if not is_view(instruction) or self.untraced & set(step.inputs):
                    self.untraced.add(index)
                continue
            self.untraced.discard(index)
            self.known[index] = recorded[index]
            found = self._settled(step, place, index, recorded[index], expected[index], bounds.get(index), again)
            best = self._judged(found, operands)
            self.replayer.compared.append(self._with_non_finite(best, instruction, recorded[index], operands))
        for index, value in expected.items():
            if not isinstance(value, Tensor):
                self.known[index] = value
        # what writes a cache may return a dummy: the cache is compared where it is read
        covered = len(recorded) == len(tensors) if tensors else written_by(instruction) is not None
        if covered:
            self.replayer.covered.setdefault((method, self.replayer.calls), set()).add(instruction.index)

    def _judged(self, record: Compared, operands: dict[int, Content]) -> Compared:
        """Nothing follows from a result of operands that hold NaN, or infinity that is no mask's: kernels may make anything of it."""
        if not over(record):
            return record
        computed = [x for index, x in operands.items() if is_computed(self.state, index)]
        if not any(has_nan(x) or (self.replayer.overflowed and not is_finite(x)) for x in computed):
            return record
        return replace(record, undefined=True, reason=record.reason or "an operand is not finite")

    def _with_non_finite(
        self, record: Compared, instruction: Instruction, actual: Tensor, operands: dict[int, Content]
    ) -> Compared:
        computed = [x for index, x in operands.items() if is_computed(self.state, index)]
        found = non_finite(actual, computed, lambda: constants_of(self.state, instruction, operands))
        if found is None:
            return record
        self.replayer.overflowed |= found.arises
        return replace(record, non_finite=found, sizes=tuple(actual.shape))

    def _settled(  # noqa: PLR0917
        self, step: Step, place: int, index: int, actual: Tensor, expected: Tensor, screen: Tensor | None, again: Again
    ) -> Compared:
        propagated = step.outputs.get(index)
        call = self.replayer.calls
        return settle_result(again, place, index, actual, expected, screen, call=call, propagated=propagated)
