"""One result of the runtime held against what was expected of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from verifier.core.compare import Difference, Mismatch, compare
from verifier.core.limits import limit
from verifier.ladder.records import Compared

FLUSHED = limit("layers.kernel.flushed").value


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
