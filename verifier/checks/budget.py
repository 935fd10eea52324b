"""`budget.*`: size, memory and speed against what the owner of a release has recorded; without a record nothing is checked.

A program that computes LLaVA may still be one that no phone can run: a table left in fp32, a cache for twice the positions, an operator that
is no longer delegated. Times count in a loop on the same machine, so that a slower machine is not a slower program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from verifier.checks.check import Check, Fields, Finding, Need, check, failed, need, one_case, passed
from verifier.core.limits import stated
from verifier.core.types import Missing
from verifier.golden.records import Budget
from verifier.measures.evidence import Evidence, Part
from verifier.measures.probes import Speed
from verifier.measures.program import ProgramFacts

_HINTS = {
    "file_bytes": "Was a table or a linear left in fp32, or a constant stored twice? weights.* and structure.census name it.",
    "planned_bytes": "Was it exported for more positions, or is an operator no longer delegated? See structure.census.",
    "peak_rss_bytes": "Do delegates share their workspace, is the embedding quantized, and is the cache no longer than planned?",
    "prefill_loops": "Are all operators delegated (structure.census), and does it run with as many threads as when the budget was recorded?",
    "decode_loops": "Are all operators delegated (structure.census), and does it run with as many threads as when the budget was recorded?",
}


@dataclass(frozen=True)
class Spent:
    """What was spent, what was recorded for this release, and why nothing was measured, if so."""

    value: float | None
    budget: Budget
    said: str = ""


def _budget(evidence: Evidence, name: str) -> Budget | Missing:
    found = None if evidence.budget is None else evidence.budget.get(name)
    return found or Missing(f"there is no budget for {name}; to record one: python -m verifier.budgets PTE", "verifier")


def _of_file(name: str, measured: Callable[[ProgramFacts], float]) -> Need[Spent]:
    """A figure of the file itself."""

    def take(evidence: Evidence) -> Spent | Missing:
        budget = _budget(evidence, name)
        return budget if isinstance(budget, Missing) else Spent(measured(evidence.program), budget)

    return need()(take)


def _of_run(name: str, measured: Callable[[Speed], float | None]) -> Need[Spent]:
    """A figure of a conversation that was run for it."""

    def take(evidence: Evidence) -> Spent | Missing:
        budget, speed = _budget(evidence, name), evidence.runtime.speed
        if isinstance(budget, Missing):
            return budget
        if isinstance(speed, Missing):
            return speed
        return Spent(measured(speed), budget, f"{speed.result.outcome} {speed.result.message}")

    return need(Part.SPEED, computed=True)(take)


def _check(id: str, what: str, name: str, unit: Literal["bytes", "loops"], needs: Need[Spent]) -> Check:
    def judge(spent: Spent, _case: str) -> Finding:
        value, budget = spent.value, spent.budget
        if value is None:
            return failed(f"{what} could not be measured: {spent.said}")
        fields: Fields = {"measured": {name: value}, "allowed": {name: budget.allowed}}
        said = f"{what}: {value:,.4g} {unit}" if value < 1e4 else f"{what}: {value:,.0f} {unit}"
        if not stated(id, budget.allowed, unit, "most").admits(value):
            more = f"{said}, {value / budget.measured - 1:+.0%} against the recorded {budget.measured:,.4g}; the budget is {budget.allowed:,.4g}"
            return failed(f"{more}. {_HINTS[name]}", fields)
        return passed(f"{said}, within the budget", fields)

    judge.__doc__ = f"{what[0].upper()}{what[1:]}, in {unit}, stays within the budget that was recorded for this release (docs/budgets.md)."
    overlap = "nothing in the bench costs more than it may; tests lower the budget"
    return check(id, step="lowering", needs=needs, cases=one_case, having={name}, overlap=overlap)(judge)


# Source of the figures: the memory and speed tables of ExecuTorch's LLaVA announcement; docs/budgets.md.
CHECKS = (
    _check(
        "budget.file", "the file", "file_bytes", "bytes", _of_file("file_bytes", lambda program: program.file_bytes)
    ),
    _check(
        "budget.memory",
        "planned memory",
        "planned_bytes",
        "bytes",
        _of_file("planned_bytes", lambda program: program.planned_bytes),
    ),
    _check(
        "budget.peak",
        "the peak of resident memory",
        "peak_rss_bytes",
        "bytes",
        _of_run("peak_rss_bytes", lambda speed: speed.peak_rss_bytes),
    ),
    _check(
        "budget.prefill",
        "an image and its prefill",
        "prefill_loops",
        "loops",
        _of_run("prefill_loops", lambda speed: speed.prefill_loops),
    ),
    _check(
        "budget.decode", "one token", "decode_loops", "loops", _of_run("decode_loops", lambda speed: speed.decode_loops)
    ),
)
