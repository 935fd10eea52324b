"""`threads.*`: the same calls give the same bits, whenever they run; other thread counts give the same up to rounding.

A result that changes from run to run is its own verdict: no comparison with a reference can judge it.
"""

from __future__ import annotations

from dataclasses import dataclass

from verifier.checks.bands import TIES, Allowed, up_to_ties
from verifier.checks.check import Fields, Finding, check, failed, fixed_cases, need, passed
from verifier.core.compare import EQUAL_DB, Mismatch, compare
from verifier.core.types import Missing, Where
from verifier.measures.evidence import Evidence, Part
from verifier.measures.probes import CALLS, CONFIGURATIONS, ThreadEvidence

FIRST, OTHERS = CONFIGURATIONS[0], CONFIGURATIONS[1:3]


def _where(call: int) -> Where:
    return Where(method=CALLS[call].split()[0])


@dataclass(frozen=True)
class Repetitions:
    """The same calls in every configuration, and what holds between two of them."""

    threads: ThreadEvidence
    allowed: Allowed


@need(Part.THREADS, computed=True)
def repetitions(evidence: Evidence) -> Repetitions | Missing:
    """The repeated calls."""
    threads = evidence.runtime.threads
    return threads if isinstance(threads, Missing) else Repetitions(threads, up_to_ties(evidence))


@check(
    "threads.repeats",
    step="kernel",
    needs=repetitions,
    cases=fixed_cases(*CONFIGURATIONS),
    limit="equal",
    overlap="a result that varies differs from the reference at times; this one sees it vary",
)
def repeats(given: Repetitions, case: str) -> Finding:
    """Ten repetitions in one process give the same bits, and so does another process with the same number of threads."""
    mine = given.threads[case]
    first = given.threads[CONFIGURATIONS[1]] if case == CONFIGURATIONS[-1] else mine
    compared = 0
    for repeat in range(len(mine.calls)):
        for call in range(len(CALLS)):
            actual, expected = mine.output(repeat, call), first.output(0, call)
            if actual is None or expected is None:
                said = f"{CALLS[call]} did not return: {mine.result.outcome} {mine.result.message}"
                return failed(said, where=_where(call))
            compared += 1
            made = compare(actual=actual, expected=expected)
            if isinstance(made, Mismatch):
                said = f"{CALLS[call]} in repetition {repeat + 1} with {mine.threads} threads cannot be compared: {made.reason}"
                return failed(said, where=Where(method=CALLS[call].split()[0], index=made.index))
            if made.differing:
                differ = made.differing
                said = f"not deterministic: with {mine.threads} threads {CALLS[call]} gave other results in repetition {repeat + 1}"
                hint = "Threads share memory that they must not share, or a buffer is read before it is written. No other result of this report is reliable."
                differing: Fields = {"measured": {"differing": differ}, "allowed": {"differing": 0}}
                return failed(f"{said} ({differ:,} elements). {hint}", differing, where=_where(call))
    fields: Fields = {"measured": {"differing": 0, "compared": compared}, "allowed": {"differing": 0}}
    return passed(f"{compared} outputs with {mine.threads} threads, equal bit by bit", fields)


@check(
    "threads.counts",
    step="kernel",
    needs=repetitions,
    cases=fixed_cases(*OTHERS),
    limit=TIES,
    overlap="the bench has no kernel that depends on the number of threads; tests give it one",
)
def counts(given: Repetitions, case: str) -> Finding:
    """With other numbers of threads the outputs equal those of one thread, up to rounding ties."""
    mine, first, allowed = given.threads[case], given.threads[FIRST], given.allowed
    worst = EQUAL_DB
    for call in range(len(CALLS)):
        actual, expected = mine.output(0, call), first.output(0, call)
        if actual is None or expected is None:
            return failed(f"{CALLS[call]} did not return: {mine.result.message}", where=_where(call))
        made = compare(actual=actual, expected=expected)
        said = f"the output of {CALLS[call]} with {mine.threads} threads differs from that with one thread"
        if isinstance(made, Mismatch):
            where = Where(method=CALLS[call].split()[0], index=made.index)
            return failed(f"{said}: {made.reason}", where=where)
        value, limit = made.sqnr_db, allowed(made.sqnr_db)
        worst = min(worst, value)
        if not limit.admits(value):
            said += f": {value:.1f} dB, allowed at least {limit.value:.1f} dB"
            apart: Fields = {"measured": {"sqnr_db": value}, "allowed": {"sqnr_db": limit.value}}
            return failed(f"{said}. A kernel divides its work among threads wrongly.", apart, where=_where(call))
    fields: Fields = {"measured": {"sqnr_db": worst}, "allowed": {"sqnr_db": allowed(worst).value}}
    return passed(f"outputs with {mine.threads} threads equal those with one, {worst:.0f} dB or more", fields)


CHECKS = (repeats, counts)
