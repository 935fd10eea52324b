"""`budget.*`: size, memory and speed against what the owner of a release has recorded; without a record nothing is checked.

A program that computes LLaVA may still be one that no phone can run: a table left in fp32, a cache for twice the positions, an operator that
is no longer delegated. Times count in a loop on the same machine, so that a slower machine is not a slower program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from verifier.artifact.program import METHODS, Artifact
from verifier.checks.common import Check, one_case
from verifier.core.limits import stated
from verifier.evidence import Evidence
from verifier.types import CheckResult

Measured = Callable[[Evidence], float | None]

_HINTS = {
    "file_bytes": "Was a table or a linear left in fp32, or a constant stored twice? weights.* and structure.census name it.",
    "planned_bytes": "Was it exported for more positions, or did an operator leave its delegate? See structure.census.",
    "peak_rss_bytes": "Do delegates share their workspace, is the embedding quantized, is the cache as long as planned?",
    "prefill_loops": "Is all of it delegated (structure.census), and are there as many threads as when it was recorded?",
    "decode_loops": "Is all of it delegated (structure.census), and are there as many threads as when it was recorded?",
}


def planned_bytes(artifact: Artifact) -> int:
    """What the three methods plan for tensors that change, in bytes."""
    return sum(sum(artifact.plans[method].arenas_bytes) for method in METHODS)


def _of_speed(name: str) -> Measured:
    def measured(evidence: Evidence) -> float | None:
        speed = evidence.runtime.speed
        value: float | None = None if speed is None else getattr(speed, name)
        return value

    return measured


def _check(id: str, what: str, name: str, unit: Literal["bytes", "loops"], measured: Measured) -> Check:
    def run(check: Check, evidence: Evidence) -> list[CheckResult]:
        budget = evidence.budget.get(name) if evidence.budget is not None else None
        value = measured(evidence)
        if budget is None:
            return [check.error("program", f"there is no budget for {what}: python -m verifier.budgets PTE")]
        if value is None:
            speed = evidence.runtime.speed
            said = "nothing was run" if speed is None else f"{speed.result.outcome} {speed.result.message}"
            return [check.failed("program", f"{what} could not be measured: {said}")]
        fields = {"measured": {name: value}, "allowed": {name: budget.allowed}}
        said = f"{what}: {value:,.4g} {unit}" if value < 1e4 else f"{what}: {value:,.0f} {unit}"
        if not stated(check.id, budget.allowed, unit, "most").admits(value):
            more = f"{said}, {value / budget.measured - 1:+.0%} against the recorded {budget.measured:,.4g}; the budget is {budget.allowed:,.4g}"
            return [check.failed("program", f"{more}. {_HINTS[name]}", **fields)]
        return [check.passed("program", f"{said}, within the budget", **fields)]

    run.__doc__ = (
        f"{what[0].upper()}{what[1:]}, in {unit}, is within what was recorded for this release (docs/budgets.md)."
    )
    return Check(id, "lowering", one_case, run)


_FIGURES: tuple[tuple[str, str, str, Literal["bytes", "loops"], Measured], ...] = (
    ("budget.file", "the file", "file_bytes", "bytes", lambda evidence: evidence.artifact.header.file_bytes),
    ("budget.memory", "planned memory", "planned_bytes", "bytes", lambda evidence: planned_bytes(evidence.artifact)),
    ("budget.peak", "the peak of resident memory", "peak_rss_bytes", "bytes", _of_speed("peak_rss_bytes")),
    ("budget.prefill", "an image and its prefill", "prefill_loops", "loops", _of_speed("prefill_loops")),
    ("budget.decode", "one token", "decode_loops", "loops", _of_speed("decode_loops")),
)
CHECKS_OF = {figure[2]: _check(*figure) for figure in _FIGURES}
"""The check of each figure. Source: the memory and speed tables of ExecuTorch's LLaVA announcement; docs/budgets.md."""
CHECKS = tuple(CHECKS_OF.values())
