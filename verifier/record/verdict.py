"""The one place where results become a verdict, a ladder, and blame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from verifier.core.compare import EQUAL_DB
from verifier.core.records import JsonObject
from verifier.core.scales import scale_of
from verifier.core.types import CheckResult, Step

STEPS: tuple[Step, ...] = ("mapping", "quantization", "lowering", "kernel", "device", "use")
EXIT_STATUS = {"pass": 0, "fail": 1, "error": 2}
Overall = Literal["pass", "fail", "error"]


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what was compared, and the result that came closest to its limit."""

    step: Step
    verdict: str
    compared: int
    coverage: float
    worst: JsonObject | None


@dataclass(frozen=True)
class Judgement:
    """Verdict of a run; `blame` is the first failing result in the order of the registry."""

    verdict: Overall
    reason: str
    blame: CheckResult | None
    rungs: tuple[Rung, ...]

    @property
    def exit_status(self) -> int:
        """0 verified, 1 a check failed, 2 not verified."""
        return EXIT_STATUS[self.verdict]


def judge_run(
    results: list[CheckResult], *, expected: int, allow_partial: bool = False, optional: frozenset[str] = frozenset()
) -> Judgement:
    """Judge all results. A failure is a fail; else anything missing, skipped or in error is an error, never a pass.

    `expected` is how many results the selected checks promise; `optional` are the ids of those that may be skipped, because what they look at
    need not exist. `allow_partial` forgives errors and holes, not failures,
    and still wants something to have passed.
    """
    rungs = tuple(_rung(step, results) for step in STEPS)
    failed = [r for r in results if r.verdict == "fail"]
    if failed:
        return Judgement("fail", f"{len(failed)} of {len(results)} checks failed", failed[0], rungs)
    holes = [r for r in results if r.verdict == "error" or (r.verdict == "skipped" and r.id not in optional)]
    passed = sum(r.verdict == "pass" for r in results)
    if passed == 0:
        return Judgement("error", "nothing was verified", holes[0] if holes else None, rungs)
    if holes and not allow_partial:
        return Judgement("error", f"{len(holes)} of {len(results)} checks could not be made", holes[0], rungs)
    if len(results) != expected and not allow_partial:
        return Judgement("error", f"{len(results)} results for {expected} cases", None, rungs)
    return Judgement(
        "pass", f"{passed} checks passed" + (f", {len(holes)} could not be made" if holes else ""), None, rungs
    )


def share_of_tolerance(result: CheckResult) -> tuple[float, str] | None:
    """How much of its tolerance a result used, and by which measure: 1 is the limit. None if it has none: a measure that is met or not, a lower
    bound of anything but dB, equality."""
    shares = []
    for key, bound in result.allowed.items():
        value, scale = result.measured.get(key), scale_of(result.id, key)
        if scale is None or not _positive(value) or not _positive(bound):
            continue
        if scale.at == "most":
            shares.append((float(value / bound), key))
        elif scale.unit == "dB" and bound != EQUAL_DB:
            shares.append((float(bound / value), key))
    return max(shares) if shares else None


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _rung(step: Step, results: list[CheckResult]) -> Rung:
    mine = [r for r in results if r.step == step]
    done = [r for r in mine if r.verdict in ("pass", "fail")]
    shares = [(*share, r) for r in done if (share := share_of_tolerance(r)) is not None]
    worst = None
    if shares:
        _, metric, result = max(shares, key=lambda found: found[0])
        worst = {
            "metric": metric,
            "value": result.measured.get(metric),
            "allowed": result.allowed[metric],
            "where": f"{result.id} {result.case}",
        }
    verdict = (
        "skipped" if not mine else next((v for v in ("fail", "error") if any(r.verdict == v for r in mine)), "pass")
    )
    return Rung(step, verdict, len(done), len(done) / len(mine) if mine else 0.0, worst)
