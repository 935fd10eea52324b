"""What checks share: results against calibrated bands, results up to rounding ties, and the golden conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from verifier.checks.check import Check, Finding, failed, need, passed, unverified
from verifier.core.limits import Limit
from verifier.core.types import Missing, Where
from verifier.golden.bands import Band
from verifier.ladder.limits import chunk_limit_db, least_db, reordered_limit_db
from verifier.measures.evidence import Case, Evidence, Part

Allowed = Callable[[float], Limit]
"""From a measured SQNR to the limit that holds for it."""
TIES = ("chunks.roundings_per_layer", "chunks.two_runs")
"""Limits of results of the same program whose sums ran in another order: by a count of ties, or by what rounding costs the checkpoint."""


def up_to_ties(evidence: Evidence) -> Allowed:
    """For results of the same program whose sums ran in another order: a count of ties, or, where it was measured, what rounding costs this
    checkpoint."""
    text = evidence.geometry.text
    counted = least_db(TIES[0], chunk_limit_db(text.width, text.layers))

    def allowed(measured: float) -> Limit:
        if counted.admits(measured) or isinstance(evidence.rounding_db, Missing):
            return counted
        return counted.of(min(counted.value, reordered_limit_db(evidence.rounding_db)))

    return allowed


def ties_leave_a_difference(checks: Iterable[Check], evidence: Evidence) -> bool:
    """Whether a result of some checks differs by more than a count of ties explains, so that the price of rounding decides."""
    judged = (result for check in checks if set(TIES).issubset(check.limit) for result in check.results(evidence))
    return any(result.verdict == "fail" and "sqnr_db" in result.allowed for result in judged)


@dataclass(frozen=True)
class Conversations:
    """The golden conversations by the name of their image, and all other evidence."""

    evidence: Evidence
    cases: dict[str, Case]

    @property
    def first(self) -> Case:
        """The first one."""
        return next(iter(self.cases.values()))


def take_conversations(evidence: Evidence) -> Conversations | Missing:
    """The golden conversations, one of each golden image."""
    cases = {case.sample.golden.name: case for case in evidence.cases}
    lacking = next((name for name in evidence.subjects.images if name not in cases), None)
    if lacking is not None or not cases:
        return Missing(f"no conversation with {lacking or 'any golden image'} was run", "verifier")
    return Conversations(evidence, cases)


calls_of_conversations = need(Part.CONVERSATIONS, golden=True)(take_conversations)
"""For checks of what was asked, and of references: nothing that the program computed is looked at."""
conversations = need(Part.CONVERSATIONS, golden=True, computed=True)(take_conversations)
"""For checks of what the program answered."""


@need()
def whole(evidence: Evidence) -> Evidence:
    """For checks of the file and its checkpoint alone."""
    return evidence


@dataclass(frozen=True)
class Measure:
    """A measured value, its band, and how to speak of it. `case` of the band is the check's own unless given."""

    metric: str
    value: float
    unit: str
    case: str | None = None


def band_of(evidence: Evidence, metric: str) -> Band | Missing:
    """The calibrated band of a metric, or why there is none."""
    if isinstance(evidence.tolerances, Missing):
        return evidence.tolerances
    band = evidence.tolerances.bands.get(metric)
    reason = f"this metric was never calibrated (got {metric}; to fix: calibrate a clean export: python -m verifier.calibrate PTE)"
    return band or Missing(reason, "verifier")


def judge(evidence: Evidence, case: str, measures: list[Measure], *, what: str, where: Where, hint: str) -> Finding:
    """Hold every measure against its band; the first one outside fails the case."""
    measured = {measure.metric: measure.value for measure in measures}
    allowed: dict[str, float] = {}
    broken: list[str] = []
    for measure in measures:
        band = band_of(evidence, measure.metric)
        of = measure.case or case
        bound = None if isinstance(band, Missing) else band.limit(of)
        if isinstance(band, Missing) or bound is None:
            reason = band.reason if isinstance(band, Missing) else f"no band of {measure.metric} for {of}"
            return unverified(f"{what} cannot be judged: {reason}", measured=measured, where=where)
        allowed[measure.metric] = bound.value
        if not bound.admits(measure.value):
            unit = f" {measure.unit}" if measure.unit else ""
            name, relation = measure.metric.split(".")[-1], f"allowed at {bound.at} {bound.value:.4g}{unit}"
            broken.append(f"{name} {measure.value:.4g}{unit}, {relation}")
    if broken:
        return failed(f"{what}: {'; '.join(broken)}. {hint}", measured=measured, allowed=allowed, where=where)
    return passed(f"{what} is within its band", measured=measured, allowed=allowed, where=where)
