"""The one table of limits: every number that decides between pass and fail, with its unit, kind, reason and provenance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["dB", "steps", "share", "full scale", "logits", "nats", "bytes", "count", "ratio", "equal"]
At = Literal["least", "most", "equal"]
Kind = Literal["derived", "physical", "measured", "policy"]


@dataclass(frozen=True)
class Limit:
    """A bound and what it bounds.

    `id` is that of a check, or of a check and one of its measures. `at` says on which side of `value` a measure must be. `kind` says where
    the value comes from: `derived` holds for every correct implementation, `physical` follows from the arithmetic and some stated
    assumption, `measured` was seen on sound artifacts (`seen` says which), `policy` is a choice. `why` gives the reason.
    """

    id: str
    value: float
    unit: Unit
    at: At
    kind: Kind
    why: str
    seen: str = ""

    def admits(self, value: float) -> bool:
        """Whether a measure is inside. This is the only comparison of a measure with a bound; NaN is never inside."""
        if self.at == "least":
            return value >= self.value
        if self.at == "most":
            return value <= self.value
        return value == self.value

    def of(self, value: float) -> Limit:
        """The same limit with a value that was computed for one case."""
        return replace(self, value=value)


_ROWS: tuple[Limit, ...] = ()

LIMITS: dict[str, Limit] = {row.id: row for row in _ROWS}


def limit(id: str) -> Limit:
    """The row of the table. Raises `KeyError` for an id that is not in it."""
    return LIMITS[id]
