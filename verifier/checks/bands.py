"""What checks share: results against calibrated bands or budgets, results up to rounding ties, and the golden conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from verifier.checks.check import PRICE, Check, Finding, failed, need, passed, unverified
from verifier.core.compare import Array
from verifier.core.limits import Limit, limit
from verifier.core.prices import default_price, option, stated_price
from verifier.core.types import Missing, Where
from verifier.families.conventions import ENCODER
from verifier.golden.bands import Band
from verifier.ladder.limits import chunk_limit_db, least_db, reordered_limit_db
from verifier.measures.evidence import Case, Evidence, Part

Allowed = Callable[[float], Limit]
"""From a measured SQNR to the limit that holds for it."""
TIES = ("chunks.roundings_per_layer", "chunks.two_runs")
"""Limits of results of the same program whose sums ran in another order: by a count of ties, or by what rounding costs the checkpoint."""
DECIDED = limit("price.decided")


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
    """A measured value of a metric, and how to speak of it. `case` of the band is the check's own unless given. `priced` is what is held against a budget,
    by a name of its own, if that is not the value itself; nothing is where it has no price."""

    metric: str
    value: float
    unit: str
    case: str | None = None
    priced: tuple[str, float] | None = None
    has_price: bool = True


@dataclass(frozen=True)
class _Bound:
    """A limit of one measure, the value that it is asked of, by its name, and where it comes from."""

    limit: Limit
    name: str
    value: float
    source: Literal["band", "default budget", "budget"]


def band_of(evidence: Evidence, metric: str) -> Band | Missing:
    """The calibrated band of a metric, or why there is none."""
    if isinstance(evidence.tolerances, Missing):
        return evidence.tolerances
    band = evidence.tolerances.bands.get(metric)
    reason = f"this metric was never calibrated (got {metric}; to fix: calibrate a clean export: python -m verifier.calibrate PTE)"
    return band or Missing(reason, "verifier")


def band_limit(evidence: Evidence, metric: str, case: str) -> Limit | None:
    """The calibrated limit of a metric for a case, None if this recipe, metric or case was never calibrated."""
    band = band_of(evidence, metric)
    return None if isinstance(band, Missing) else band.limit(case)


def price_limit(evidence: Evidence, metric: str, case: str) -> Limit:
    """The budget of a metric: what the user stated, or the default for the file's recipe."""
    stated = evidence.prices.get(metric)
    tower = metric.startswith("vision.") or case.startswith(ENCODER)
    return default_price(metric, evidence.recipe, tower=tower) if stated is None else stated_price(metric, stated)


def _bounds(evidence: Evidence, measure: Measure, case: str) -> list[_Bound]:
    """The band, if there is one, else the budget; a budget that the user states holds beside a band."""
    band = band_limit(evidence, measure.metric, case)
    bounds = [] if band is None else [_Bound(band, measure.metric, measure.value, "band")]
    stated = measure.metric in evidence.prices
    if measure.has_price and (stated or band is None):
        name, value = measure.priced or (measure.metric, measure.value)
        price = price_limit(evidence, measure.metric, case)
        bounds.append(_Bound(price, name, value, "budget" if stated else "default budget"))
    return bounds


def decided(logits: Array) -> NDArray[np.bool_]:
    """Which rows [N] of fp32's logits [N, V] have a first choice that is more likely than all others together: where they do not, another token
    says nothing."""
    wide = logits.astype(np.float64)
    probability = 1 / np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)
    return np.array([DECIDED.admits(float(p)) for p in probability], dtype=np.bool_)


def judge(evidence: Evidence, case: str, measures: list[Measure], *, what: str, where: Where, hint: str) -> Finding:
    """Hold every measure against its band, or against its budget where it has no band; what is outside fails the case."""
    measured = {measure.metric: measure.value for measure in measures}
    allowed: dict[str, float] = {}
    broken: list[str] = []
    sources: set[str] = set()
    over: set[str] = set()
    for measure in measures:
        for bound in _bounds(evidence, measure, measure.case or case):
            inside, sources = bound.limit.admits(bound.value), sources | {bound.source}
            if bound.name not in allowed or not inside:
                measured[bound.name], allowed[bound.name] = bound.value, bound.limit.value
            if not inside:
                broken.append(_beyond(measure, bound))
                over.add(bound.source)
    if broken:
        accused = "" if "band" in over else PRICE
        message = f"{what}: {'; '.join(broken)}. {hint}"
        return failed(message, measured=measured, allowed=allowed, where=where, accuses=accused)
    if not sources:
        return unverified(f"{what} has neither a band nor a price: nothing was judged", measured=measured, where=where)
    if sources == {"band"}:
        return passed(f"{what} is within its band", measured=measured, allowed=allowed, where=where)
    named = " and ".join(sorted(sources))
    return passed(f"{what} is within its {named}", measured=measured, allowed=allowed, where=where)


def _beyond(measure: Measure, bound: _Bound) -> str:
    unit = f" {measure.unit}" if measure.unit else ""
    name, at = bound.name.split(".")[-1], bound.limit.at
    said = f"{name} {bound.value:.4g}{unit}, allowed at {at} {bound.limit.value:.4g}{unit}"
    if bound.source == "band":
        return said
    stated = option(measure.metric, bound.value)
    if bound.source == "budget":
        return f"{said} by the budget that was stated"
    return f"{said} by the default budget of quantization (to accept this price: {stated})"
