"""Rows of a comparison: one subject, what it was, what it is, and whether that is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from verifier.core.limits import stated

Change = Literal["better", "same", "worse", "changed", "unknown"]
"""`changed` is another thing that is neither better nor worse by itself, `unknown` was not measured on both sides."""
LISTED = 6
"""Changes that a row names, the worst first."""


@dataclass(frozen=True)
class Row:
    """One subject. `noise` is the difference that equally clean files may have, `budget` the loss that is accepted; both in the unit of
    the numbers, or as a share of the old one if `relative`. `detail` says what changed, the worst first."""

    subject: str
    what: str
    old: float | str | None
    new: float | str | None
    change: Change
    unit: str = ""
    noise: float = 0.0
    budget: float = 0.0
    relative: bool = False
    detail: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """How much of the old value was lost or added, against the budget's unit; 0 where there are no numbers."""
        if not isinstance(self.old, (int, float)) or not isinstance(self.new, (int, float)):
            return 0.0
        apart = abs(self.new - self.old)
        return apart / abs(self.old) if self.relative and self.old else apart

    @property
    def beyond_budget(self) -> bool:
        """Whether it is worse by more than is accepted."""
        within = stated("compare", self.budget, "ratio", "most").admits(self.loss)
        return self.change == "worse" and (not within or self.loss == 0.0)


def number_row(
    subject: str,
    what: str,
    old: float | None,
    new: float | None,
    *,
    more_is_better: bool,
    unit: str = "",
    noise: float = 0.0,
    budget: float = 0.0,
    relative: bool = False,
    detail: tuple[str, ...] = (),
) -> Row:
    """A row of two numbers: within `noise` they are the same."""
    if old is None or new is None or not (math.isfinite(old) and math.isfinite(new)):
        return Row(subject, what, old, new, "unknown", unit, noise, budget, relative, detail)
    gained = (new - old) * (1 if more_is_better else -1)
    allowed = noise * abs(old) if relative else noise
    change: Change = (
        "same"
        if stated("compare", allowed, "ratio", "most").admits(abs(gained))
        else "better"
        if gained > 0
        else "worse"
    )
    return Row(subject, what, old, new, change, unit, noise, budget, relative, detail)
