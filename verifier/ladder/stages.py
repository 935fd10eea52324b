"""Is a result that differs what a correct kernel may give? Asked in stages, and only as far as needed.

1. Within the screen: what independent roundings leave. Nearly everything ends here.
2. Beyond the bound that holds for every order of summation: wrong, whatever the order.
3. Between the exact result and those of the orders that kernels are known to have, give or take the screen: a long chain of sums of one
   sign drifts, and a kernel with shorter chains drifts less.
4. What is left may be rounding, or a small fault: nobody can say. It is not passed, and not called a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from verifier.artifact.plan import Instruction
from verifier.backends.quantization import PerTensor, PerToken
from verifier.interpret.machine import MethodState, evaluate
from verifier.ladder.call_text import instruction_text, operator_name
from verifier.ladder.compared import compare_tensors
from verifier.ladder.limits import LINEAR, SHARE, excess
from verifier.ladder.records import Compared, is_linear
from verifier.operators.order import ORDERS
from verifier.operators.rounding import any_order

Compare = Callable[[Tensor, Tensor | None], Compared]
"""The runtime's result against an expected one, within a bound."""


@dataclass
class Again:
    """An instruction evaluated once more on the same operands: its bounds for any order, and its results in known orders."""

    state: MethodState
    instruction: Instruction
    operands: dict[int, Any]

    @cached_property
    def has_groups(self) -> bool:
        """Whether it is a delegate of 4-bit linears."""
        if self.instruction.kind != "delegate":
            return False
        return any(value.has_groups for value in self.state.graph(self.instruction).values.values())

    @cached_property
    def has_dynamic_rows(self) -> bool:
        """Whether it is a delegate that rounds activations by the rows it is given, and none by a scale of the file."""
        if self.instruction.kind != "delegate":
            return False
        kinds = {type(value.quantization) for value in self.state.graph(self.instruction).values.values()}
        return PerToken in kinds and PerTensor not in kinds

    @cached_property
    def bounds(self) -> dict[int, Tensor]:
        """Bounds that hold for every order, by number of EValue."""
        found: dict[int, Tensor] = {}
        evaluate(self.state, self.instruction, self.operands, bounds=found, sums=any_order)
        return found

    @cached_property
    def orders(self) -> tuple[dict[int, Any], ...]:
        """Results by number of EValue, for each of `ORDERS`; of 4-bit linears alone for what tells theirs apart."""
        orders = {(order.offset, order.pieces): order for order in ORDERS}.values() if self.has_groups else ORDERS
        return tuple(evaluate(self.state, self.instruction, self.operands, order=order) for order in orders)


def settle_result(  # noqa: PLR0917
    again: Again,
    place: int,
    index: int,
    actual: Tensor,
    expected: Tensor,
    screen: Tensor | None,
    *,
    call: int = 0,
    propagated: Tensor | None = None,
) -> Compared:
    """Hold the runtime's result number `place` of an instruction, EValue `index`, against the interpreter's, on the operands of `again`. `propagated` is what
    the interpreter's own run has there."""
    state, instruction = again.state, again.instruction
    quantum = None
    if instruction.kind == "delegate":
        graph = state.graph(instruction)
        quantum = state.backend(instruction).step(graph, graph.outputs[place])
    record = Compared(
        call=call,
        method=state.plan.name,
        instruction=instruction.index,
        operator=operator_name(state, instruction),
        call_text=instruction_text(state, instruction, again.operands.values(), actual),
        result=place,
        kind="step" if quantum is not None else "bound" if expected.is_floating_point() else "equal",
        elements=expected.numel(),
    )

    def against(made: Tensor, bound: Tensor | None) -> Compared:
        return compare_tensors(record, actual, made, quantum=quantum, bound=bound, propagated=propagated)

    return settle(against, actual, expected, screen, index, again)


def settle(  # noqa: PLR0917
    compare: Compare, actual: Tensor, expected: Tensor, screen: Tensor | None, index: int, again: Again
) -> Compared:
    """What the first stage that can decide says of a result, EValue `index`."""
    found = compare(expected, screen)
    if found.kind != "bound" or found.reason:
        return found
    linear = is_linear(found) and again.has_groups
    if SHARE.admits(found.worst) and not (linear and not LINEAR.admits(found.sqnr_db)):
        return replace(found, unexplained=_unlimited(actual, expected, screen))
    if linear:
        tried = [found, *(compare(order[index], screen) for order in again.orders)]
        best = min(tried, key=lambda record: (excess(record), -record.sqnr_db))
        if SHARE.admits(best.worst) or LINEAR.admits(best.sqnr_db):
            return replace(best, reordered=best is not found)
    limits = again.bounds.get(index)
    settled = compare(expected, limits)
    if not SHARE.admits(settled.worst):
        return settled
    made = torch.stack([expected, *(order[index] for order in again.orders)])
    nearest = torch.minimum(torch.maximum(actual, made.amin(0)), made.amax(0))
    if SHARE.admits(compare(nearest, screen).worst) and not _unlimited(actual, expected, limits):
        return replace(settled, reordered=True)
    return replace(settled, unexplained=True)


def _unlimited(actual: Tensor, expected: Tensor, bound: Tensor | None) -> bool:
    """Whether a result differs where its bound says nothing, as behind a division by what may be zero."""
    if bound is None or bool(bound.isfinite().all()):
        return False
    return bool((~bound.isfinite() & (actual != expected) & ~(actual.isnan() & expected.isnan())).any())
