"""`threads.*`: the same calls give the same bits, whenever they run; other thread counts give the same up to rounding.

A result that changes from run to run is its own verdict: no comparison with a reference can judge it.
"""

from __future__ import annotations

from verifier.checks.common import Allowed, Check, fixed_cases, up_to_ties
from verifier.core.compare import EQUAL_DB, Mismatch, compare
from verifier.evidence import Evidence
from verifier.probes.threads import CALLS, CONFIGURATIONS, Repeated
from verifier.types import CheckResult, Where

FIRST, OTHERS = CONFIGURATIONS[0], CONFIGURATIONS[1:3]


def _where(call: int) -> Where:
    return Where(method=CALLS[call].split()[0])


def repeats(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Ten repetitions in one process, cold and warm, give the same bits; so does another process of as many threads."""
    threads = evidence.runtime.threads
    if threads is None:
        return [check.error(case, "nothing was run again") for case in CONFIGURATIONS]
    return [_repeats(check, case, threads[case], threads[CONFIGURATIONS[1]]) for case in CONFIGURATIONS]


def _repeats(check: Check, case: str, mine: Repeated, other: Repeated) -> CheckResult:
    first = other if case == CONFIGURATIONS[-1] else mine
    compared = 0
    for repeat in range(len(mine.calls)):
        for call in range(len(CALLS)):
            actual, expected = mine.output(repeat, call), first.output(0, call)
            if actual is None or expected is None:
                said = f"{CALLS[call]} did not return: {mine.result.outcome} {mine.result.message}"
                return check.failed(case, said, where=_where(call))
            compared += 1
            made = compare(actual=actual, expected=expected)
            if isinstance(made, Mismatch):
                said = f"{CALLS[call]} in repetition {repeat + 1} with {mine.threads} threads cannot be compared: {made.reason}"
                return check.failed(case, said, where=Where(method=CALLS[call].split()[0], index=made.index))
            if made.differing:
                differ = made.differing
                said = f"not deterministic: with {mine.threads} threads {CALLS[call]} gave other numbers in repetition {repeat + 1}"
                hint = "Threads share memory that they must not, or a buffer is read before it is written. No other verdict about this file holds."
                fields = {"measured": {"differing": differ}, "allowed": {"differing": 0}}
                return check.failed(case, f"{said} ({differ:,} elements). {hint}", where=_where(call), **fields)
    fields = {"measured": {"differing": 0, "compared": compared}, "allowed": {"differing": 0}}
    return check.passed(case, f"{compared} outputs with {mine.threads} threads, the same bits", **fields)


def counts(check: Check, evidence: Evidence) -> list[CheckResult]:
    """With other thread counts the results are those of one thread, up to rounding ties."""
    threads = evidence.runtime.threads
    if threads is None:
        return [check.error(case, "nothing was run again") for case in OTHERS]
    allowed = up_to_ties(evidence)
    return [_counts_of(check, case, threads[case], threads[FIRST], allowed) for case in OTHERS]


def _counts_of(check: Check, case: str, mine: Repeated, first: Repeated, allowed: Allowed) -> CheckResult:
    worst = EQUAL_DB
    for call in range(len(CALLS)):
        actual, expected = mine.output(0, call), first.output(0, call)
        if actual is None or expected is None:
            return check.failed(case, f"{CALLS[call]} did not return: {mine.result.message}", where=_where(call))
        made = compare(actual=actual, expected=expected)
        said = f"{CALLS[call]} with {mine.threads} threads is not that of one thread"
        if isinstance(made, Mismatch):
            where = Where(method=CALLS[call].split()[0], index=made.index)
            return check.failed(case, f"{said}: it cannot be compared, {made.reason}", where=where)
        value, limit = made.sqnr_db, allowed(made.sqnr_db)
        worst = min(worst, value)
        if not limit.admits(value):
            said += f": {value:.1f} dB, allowed at least {limit.value:.1f} dB"
            fields = {"measured": {"sqnr_db": value}, "allowed": {"sqnr_db": limit.value}}
            return check.failed(case, f"{said}. A kernel splits its work wrongly.", where=_where(call), **fields)
    fields = {"measured": {"sqnr_db": worst}, "allowed": {"sqnr_db": allowed(worst).value}}
    return check.passed(case, f"{mine.threads} threads as one, {worst:.0f} dB and more", **fields)


CHECKS = (
    Check("threads.repeats", "kernel", fixed_cases(*CONFIGURATIONS), repeats),
    Check("threads.counts", "kernel", fixed_cases(*OTHERS), counts),
)
