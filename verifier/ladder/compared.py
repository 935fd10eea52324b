"""One result of the runtime held against what was expected of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from verifier.core.compare import EQUAL_DB, Difference, Mismatch, compare
from verifier.core.limits import limit
from verifier.ladder.finite import NonFinite

FLUSHED = limit("layers.kernel.flushed").value


@dataclass(frozen=True)
class Compared:
    """One result of one instruction in one call.

    `kind` says how it is judged: `bound`, in shares of the interpreter's error bound; `step`, in quantization steps;
    `equal`. `worst` is the largest local error in that unit, at `index`, where the runtime has `actual` and the interpreter
    `expected`; `share_off` is the share of elements that differ at all. `sqnr_db` is local, `propagated_db` end to end
    (None against the recipe's constants, which are compared locally only, and where the two cannot be compared).
    `reason` is what made a comparison impossible; `sqnr_db` is NaN then. `undefined` is whether nothing follows from the comparison: NaN stands at the
    same places on both sides, or among the operands. `non_finite` is what the runtime's result holds that is no number. `reordered` says that the
    result lies between the exact sums and those of a kernel's own order; `unexplained`, that some order of summation might give it, but none that is
    known (`verifier.ladder.stages`).
    """

    call: int
    method: str
    instruction: int
    operator: str
    result: int
    kind: str
    elements: int
    worst: float = 0.0
    share_off: float = 0.0
    index: tuple[int, ...] = ()
    actual: float = 0.0
    expected: float = 0.0
    sqnr_db: float = EQUAL_DB
    propagated_db: float | None = None
    reason: str = ""
    undefined: bool = False
    non_finite: NonFinite | None = None
    sizes: tuple[int, ...] = ()
    reordered: bool = False
    unexplained: bool = False


def is_linear(record: Compared) -> bool:
    """Whether a result is that of a delegate of 4-bit linears, in fp32."""
    return "FullyConnected" in record.operator and record.kind == "bound"


def compare_tensors(
    record: Compared,
    actual: Tensor,
    expected: Tensor,
    *,
    quantum: float | None,
    bound: Tensor | None,
    propagated: Tensor | None,
) -> Compared:
    """Fill in a record. Infinities count as equal to themselves, as attention masks have them; a NaN to nothing."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        got, wanted = (f"{x.dtype} {list(x.shape)}".removeprefix("torch.") for x in (actual, expected))
        reason = f"the runtime has {got}, the program's bytes give {wanted}"
        return replace(record, reason=reason, sqnr_db=float("nan"))
    end_to_end = _db(actual, propagated)
    if not actual.numel() or bool((actual == expected).all()):
        return replace(record, propagated_db=end_to_end)
    made = compare(actual=_numbers(actual), expected=_numbers(expected), masked=True)
    if isinstance(made, Mismatch):
        reason = made.reason.replace(" in actual", " in the runtime's result").replace(
            " in expected", " in what the program's bytes give"
        )
        return replace(record, reason=reason, undefined=made.both, index=made.index or (), sqnr_db=float("nan"))
    unit = quantum if quantum is not None else 1.0 if bound is None else _numbers(bound.clamp(min=FLUSHED))
    worst = made.worst(unit)
    return replace(
        record,
        worst=worst.error,
        share_off=made.share_off,
        index=worst.index,
        actual=worst.actual,
        expected=worst.expected,
        sqnr_db=made.sqnr_db,
        propagated_db=end_to_end,
    )


def _numbers(x: Tensor) -> Any:
    return x.detach().numpy()


def _db(actual: Tensor, expected: Tensor | None) -> float | None:
    if expected is None or not actual.numel():
        return None
    made = compare(actual=_numbers(actual), expected=_numbers(expected), masked=True)
    return made.sqnr_db if isinstance(made, Difference) else None
