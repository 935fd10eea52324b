"""Bands: what a clean artifact measured, and how far from it another one may lie. They belong to one recipe of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from verifier.core.errors import GoldenError
from verifier.core.limits import Limit
from verifier.core.records import JsonObject
from verifier.core.scales import SCALES, Scale
from verifier.golden.records import TOLERANCE_SCHEMA, read_stored


@dataclass(frozen=True)
class Band:
    """What a clean artifact measured, per case, and how far from it another clean one may lie: `margin`, or more for cases that were
    seen to move more (`wider`). `spread` is how far equally clean artifacts lie apart: the upper end of the interval of its rms.

    `direction` +1: smaller is a fault (SQNR); -1: larger is a fault (KL). Units are those of the metric.
    """

    metric: str
    direction: int
    measured: dict[str, float]
    margin: float
    wider: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0

    def allowed(self, case: str) -> float | None:
        """The bound for a case, None if it was never measured."""
        value = self.measured.get(case)
        return None if value is None else value - self.direction * self.wider.get(case, self.margin)

    def limit(self, case: str) -> Limit | None:
        """The bound for a case as a limit, None if it was never measured."""
        bound = self.allowed(case)
        return None if bound is None else self._limit(bound)

    @property
    def loosest(self) -> Limit:
        """The bound of the case that is allowed the most."""
        bounds = [bound for case in self.measured if (bound := self.allowed(case)) is not None]
        return self._limit(min(bounds) if self.direction > 0 else max(bounds))

    def _limit(self, bound: float) -> Limit:
        scale = SCALES.get(self.metric, Scale("ratio", "least" if self.direction > 0 else "most"))
        return scale.limit(self.metric, bound)


@dataclass(frozen=True)
class Tolerances:
    """Bands of one recipe, and the instruction census that belongs to it."""

    recipe: str
    bands: dict[str, Band]
    census: dict[str, dict[str, int]]
    provenance: JsonObject


def load_tolerances(folder: Path, checkpoint_sha256: str, recipe: str) -> Tolerances:
    """The bands of a recipe in `folder/tolerances.json`. Raises `GoldenError` if there are none for it."""
    path = folder / "tolerances.json"
    fix = "calibrate a clean export: python -m verifier.calibrate PTE"

    def parse(record: JsonObject) -> Tolerances:
        if record.get("checkpoint_sha256") != checkpoint_sha256:
            raise GoldenError(
                "the tolerances belong to another checkpoint",
                got=record.get("checkpoint_sha256"),
                expected=checkpoint_sha256,
                where=path,
                fix=fix,
            )
        found = record["recipes"].get(recipe)
        if found is None:
            known = ", ".join(record["recipes"])
            raise GoldenError("this recipe was never calibrated", got=recipe, expected=known, where=path, fix=fix)
        bands = {name: _band(name, band) for name, band in found["bands"].items()}
        return Tolerances(recipe, bands, found["census"], found["provenance"])

    return read_stored(path, TOLERANCE_SCHEMA, parse)


def _band(name: str, record: JsonObject) -> Band:
    return Band(
        name,
        int(record["direction"]),
        {str(case): float(value) for case, value in record["measured"].items()},
        float(record["margin"]),
        {str(case): float(value) for case, value in record.get("wider", {}).items()},
        float(record.get("spread_ci95", (0.0, 0.0))[1]),
    )
