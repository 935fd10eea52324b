"""One result of the runtime held against what was expected of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.metrics import sqnr_db

FLUSHED = 2.0**-120
"""No bound is below this: kernels flush to zero what is subnormal (below 2^-126), also on the way, as XNNPACK's exp does
with a result of 1.4 times 2^-126 (seen in a softmax whose logits span 87)."""


@dataclass(frozen=True)
class Compared:
    """One result of one instruction in one call.

    `kind` says how it is judged: `bound`, in shares of the interpreter's error bound; `step`, in quantization steps;
    `equal`. `worst` is the largest local error in that unit, at `index`, where the runtime has `actual` and the interpreter
    `expected`; `share_off` is the share of elements that differ at all. `sqnr_db` is local, `propagated_db` end to end
    (None against the recipe's constants, which are compared locally only).
    `reason` is what made a comparison impossible.
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
    sqnr_db: float = 400.0
    propagated_db: float | None = None
    reason: str = ""


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
    """Fill in a record. Infinities count as equal to themselves, a NaN to nothing unless both have it there."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        got, wanted = (f"{x.dtype} {list(x.shape)}".removeprefix("torch.") for x in (actual, expected))
        return replace(record, reason=f"the runtime has {got}, the program's bytes give {wanted}")
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if bool(same.all()) or not actual.numel():
        return replace(record, propagated_db=_db(actual, propagated))
    a, e = actual.double(), expected.double()
    distance = torch.where(same, torch.zeros(()).double(), (a - e).abs())
    if quantum is not None:
        error = distance / quantum
    elif bound is not None:
        error = torch.where(same, torch.zeros(()).double(), distance / bound.clamp(min=FLUSHED))
    else:
        error = distance
    error = torch.where(error.isnan(), torch.inf, error)  # one side alone is not finite
    flat = int(error.reshape(-1).argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape)] if expected.dim() else []
    return replace(
        record,
        worst=float(error.reshape(-1)[flat]),
        share_off=float((~same).double().mean()),
        index=tuple(at),
        actual=float(a.reshape(-1)[flat]),
        expected=float(e.reshape(-1)[flat]),
        sqnr_db=_db(actual, expected),
        propagated_db=_db(actual, propagated),
    )


def _db(actual: Tensor, expected: Tensor | None) -> float:
    if expected is None or expected.shape != actual.shape:
        return -400.0
    a, e = actual.double().numpy(), expected.double().numpy()
    finite = (abs(a) < float("inf")) & (abs(e) < float("inf"))
    return sqnr_db(actual=a[finite], expected=e[finite]) if finite.any() else 400.0
