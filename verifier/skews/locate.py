"""The first instruction of a method whose result has other bits, on the same operands.

No tracer is needed: the method is cut behind an instruction and returns that result alone (`verifier.artifact.rewire`), so any release of the runtime can be
asked. The instruction is found by bisection; its operands are asked of the base in the same way, and the interpreter says what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.plan import TensorValue
from verifier.artifact.rewire import rewire
from verifier.backends.calls import is_view, written_by
from verifier.core.compare import Difference, compare
from verifier.core.errors import RunnerError
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Opened
from verifier.interpret.machine import Machine, MethodState, constant_tensor, evaluate
from verifier.ladder.call_text import instruction_text
from verifier.ladder.limits import excess
from verifier.ladder.records import Compared
from verifier.ladder.replay import computes
from verifier.ladder.stages import Again, settle_result
from verifier.operators.operator import ProgramFaultError, UnknownOperationError
from verifier.runner.protocol import Array, Bundle, Call, Result, Runner
from verifier.skews.conversation import same_bits
from verifier.skews.records import FirstChange


class Prefixes:
    """A method's calls up to one that differs, and the runtimes that are asked for what an instruction leaves."""

    def __init__(self, opened: Opened, method: str, calls: Sequence[Call], folder: Path) -> None:
        """`calls` are of this method alone, with arrays for inputs; the last one is asked about."""
        self.opened, self.method, self.folder = opened, method, folder
        self.calls = [replace(call, keep=False, further=(), rows="all") for call in calls]
        self.asked: dict[tuple[str, int, int], Array] = {}

    @cached_property
    def state(self) -> MethodState:
        """The method as the interpreter has it."""
        return Machine(self.opened.artifact).methods[self.method]

    def content(self, runner: Runner, instruction: int, value: int) -> Array:
        """What an EValue holds behind an instruction of the last call. Raises `RunnerError` if the shortened program does not run there."""
        key = (runner.name, instruction, value)
        if key not in self.asked:
            pte = self.folder / "prefix.pte"
            rewire(self.opened.artifact, pte, self.method, outputs=[value], until=instruction)
            calls = (*self.calls[:-1], replace(self.calls[-1], keep=True))
            result: Result = run_bundle(runner, Bundle(pte, tuple(calls)))
            if result.outcome != "ok":
                raise RunnerError(
                    f"{runner.name} does not run {self.method} up to instruction {instruction}",
                    got=f"{result.outcome}: {result.message}",
                )
            self.asked[key] = result.outputs[len(calls) - 1]
        return self.asked[key]

    def differs(self, base: Runner, other: Runner, instruction: int) -> bool:
        """Whether some result of an instruction has other bits."""
        return any(
            not same_bits(self.content(base, instruction, value), self.content(other, instruction, value))
            for value in self.left(instruction)
        )

    def left(self, instruction: int) -> tuple[int, ...]:
        """The tensors that an instruction computes, a cache that it writes among them."""
        step = self.state.plan.instructions[instruction]
        written = written_by(step)
        found = self.state.results(step) if written is None else (written,)
        return tuple(v for v in found if isinstance(self.state.plan.values[v], TensorValue))

    def computing(self) -> list[int]:
        """Instructions that compute a tensor."""
        steps = self.state.plan.instructions
        return [step.index for step in steps if computes(step) and not is_view(step) and self.left(step.index)]


def first_change(prefixes: Prefixes, base: Runner, other: Runner, module: str = "") -> FirstChange | None:
    """The instruction that begins the difference of the last call; None if no instruction does."""
    candidates = prefixes.computing()
    if not candidates or not prefixes.differs(base, other, candidates[-1]):
        return None
    low, high = -1, len(candidates) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if prefixes.differs(base, other, candidates[middle]):
            high = middle
        else:
            low = middle
    return _judged(prefixes, base, other, candidates[high], module)


def _judged(prefixes: Prefixes, base: Runner, other: Runner, instruction: int, module: str) -> FirstChange:
    state = prefixes.state
    step = state.plan.instructions[instruction]
    value = next(
        v
        for v in prefixes.left(instruction)
        if not same_bits(prefixes.content(base, instruction, v), prefixes.content(other, instruction, v))
    )
    ours, theirs = prefixes.content(base, instruction, value), prefixes.content(other, instruction, value)
    made = compare(actual=theirs, expected=ours, masked=True)
    operands = _operands(prefixes, base, instruction)
    change = FirstChange(
        prefixes.method,
        len(prefixes.calls) - 1,
        instruction,
        module,
        instruction_text(state, step, operands.values(), torch.from_numpy(np.array(theirs))),
        float(made.share_off) if isinstance(made, Difference) else 1.0,
        made.sqnr_db if isinstance(made, Difference) else float("nan"),
    )
    try:
        found = [_settled(state, instruction, value, _cloned(operands), array) for array in (ours, theirs)]
    except (UnknownOperationError, ProgramFaultError) as error:
        return replace(change, unknown=str(error))
    unknown = "it may be rounding in an order of sums that is not known" if any(x.unexplained for x in found) else ""
    return replace(change, base_share=excess(found[0]), share=excess(found[1]), unknown=unknown)


def _operands(prefixes: Prefixes, base: Runner, instruction: int) -> dict[int, object]:
    """What an instruction reads, as the base has it right before."""
    state, plan = prefixes.state, prefixes.state.plan
    given = dict(zip(plan.inputs, prefixes.calls[-1].inputs, strict=True))
    found: dict[int, object] = {}
    for index in state.operands(plan.instructions[instruction]):
        source, value = state.views.get(index, index), plan.values[index]
        if not isinstance(value, TensorValue):
            found[index] = value
        elif value.constant is not None:
            found[index] = constant_tensor(value, state.storage)
        elif index in given:
            found[index] = torch.from_numpy(np.array(given[index]))
        else:
            array = np.array(prefixes.content(base, instruction - 1, source)) if instruction else np.zeros(value.sizes)
            tensor = torch.from_numpy(array)
            found[index] = tensor.reshape(value.sizes) if index != source else tensor
    return found


def _cloned(operands: dict[int, object]) -> dict[int, object]:
    """A cache among them is written in place."""
    return {index: x.clone() if isinstance(x, Tensor) else x for index, x in operands.items()}


def _settled(state: MethodState, instruction: int, value: int, operands: dict[int, object], actual: Array) -> Compared:
    """A runtime's result against the interpreter's."""
    step, bounds = state.plan.instructions[instruction], dict[int, Tensor]()
    made = evaluate(state, step, operands, bounds=bounds)
    written = written_by(step) == value
    expected = operands[value] if written else made[value]
    assert isinstance(expected, Tensor)
    place = 0 if written else state.results(step).index(value)
    tensor = torch.from_numpy(np.array(actual))
    return settle_result(Again(state, step, operands), place, value, tensor, expected, bounds.get(value))
