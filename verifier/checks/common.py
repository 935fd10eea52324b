"""What checks share: the record of a check, and results against bands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from verifier.core.limits import Limit
from verifier.errors import GoldenError
from verifier.evidence import Evidence, Subjects
from verifier.golden import Band
from verifier.ladder.limits import chunk_limit_db, least_db
from verifier.types import CheckResult, Step, Where

Cases = Callable[[Subjects], tuple[str, ...]]
"""From the subjects to the cases of a check, so that tests can be listed before anything runs."""


@dataclass(frozen=True)
class Check:
    """A check by id and step; `run` gives exactly the cases that `cases` names."""

    id: str
    step: Step
    cases: Cases
    run: Callable[[Check, Evidence], list[CheckResult]]

    def passed(self, case: str, message: str, **fields: object) -> CheckResult:
        """A pass."""
        return CheckResult(self.id, self.step, case, "pass", message, **fields)  # type: ignore[arg-type]

    def failed(self, case: str, message: str, **fields: object) -> CheckResult:
        """A failure: the artifact is at fault."""
        return CheckResult(self.id, self.step, case, "fail", message, **fields)  # type: ignore[arg-type]

    def error(self, case: str, message: str, **fields: object) -> CheckResult:
        """Not verified: something needed is missing."""
        return CheckResult(self.id, self.step, case, "error", message, **fields)  # type: ignore[arg-type]


def fixed_cases(*names: str) -> Cases:
    """Cases that do not depend on the model."""
    return lambda _subjects: names


Allowed = Callable[[float], Limit]
"""From a measured SQNR to the limit that holds for it."""


def up_to_ties(evidence: Evidence) -> Allowed:
    """For results of the same program whose sums ran in another order. What rounding costs this checkpoint is measured only where a count of
    ties does not explain what was found."""
    text = evidence.checkpoint.geometry.text
    counted = least_db("chunks", chunk_limit_db(text.width, text.layers))

    def allowed(measured: float) -> Limit:
        if counted.admits(measured):
            return counted
        return counted.of(min(counted.value, evidence.rounding.limit_db))

    return allowed


one_case = fixed_cases("program")
"""A check of the whole file."""


def per_image(subjects: Subjects) -> tuple[str, ...]:
    """A check of every golden image."""
    return subjects.images


def per_parameter(subjects: Subjects) -> tuple[str, ...]:
    """A check of every parameter of the checkpoint that reaches the program."""
    return subjects.parameters


def per_block(subjects: Subjects) -> tuple[str, ...]:
    """A check of every block of the model."""
    return subjects.blocks


@dataclass(frozen=True)
class Measure:
    """A measured value, its band, and how to speak of it. `case` of the band is the check's own unless given."""

    metric: str
    value: float
    unit: str
    case: str | None = None


def band_of(evidence: Evidence, metric: str) -> Band | GoldenError:
    """The calibrated band of a metric, or why there is none."""
    if isinstance(evidence.tolerances, GoldenError):
        return evidence.tolerances
    band = evidence.tolerances.bands.get(metric)
    return band or GoldenError(
        "this metric was never calibrated", got=metric, fix="calibrate a clean export: python -m verifier.calibrate PTE"
    )


def judge(
    check: Check, evidence: Evidence, case: str, measures: list[Measure], *, what: str, where: Where, hint: str
) -> CheckResult:
    """Hold every measure against its band; the first one outside fails the case."""
    measured = {measure.metric: measure.value for measure in measures}
    allowed: dict[str, float] = {}
    broken: list[str] = []
    for measure in measures:
        band = band_of(evidence, measure.metric)
        of = measure.case or case
        bound = None if isinstance(band, GoldenError) else band.limit(of)
        if isinstance(band, GoldenError) or bound is None:
            reason = band.one_line if isinstance(band, GoldenError) else f"no band of {measure.metric} for {of}"
            return check.error(case, f"{what} cannot be judged: {reason}", measured=measured, where=where)
        allowed[measure.metric] = bound.value
        if not bound.admits(measure.value):
            unit = f" {measure.unit}" if measure.unit else ""
            name, relation = measure.metric.split(".")[-1], f"allowed at {bound.at} {bound.value:.4g}{unit}"
            broken.append(f"{name} {measure.value:.4g}{unit}, {relation}")
    if broken:
        return check.failed(
            case, f"{what}: {'; '.join(broken)}. {hint}", measured=measured, allowed=allowed, where=where
        )
    return check.passed(case, f"{what} is within its band", measured=measured, allowed=allowed, where=where)
