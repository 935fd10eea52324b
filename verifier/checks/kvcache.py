"""`kvcache.basic`: the cache's simplest promises, on the shipped program, without a reference."""

from __future__ import annotations

from runner.protocol import Result
from verifier.cache_probe import PROBE_TOKENS, SPLITS
from verifier.checks.common import Check
from verifier.evidence import Evidence, Subjects
from verifier.metrics import comparable, sqnr_db
from verifier.types import CheckResult, Where

ALLOWED_DB = 60.0
"""Same tokens, other chunks: sums run in another order, and a dynamically quantized activation at a tie may round to the
next of 256 steps. Measured on llava_tiny: 136 dB and more."""
RESTART_DB = 300.0
"""The same calls again must give the same bits."""
BEYOND = ("beyond one", "beyond chunk")
CASES = (*SPLITS, "after another prompt", "last position", *BEYOND)


def _cases(_subjects: Subjects) -> tuple[str, ...]:
    return CASES


def basic(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Chunks do not matter, a new prompt forgets the last one, the last position works, and one past it is an error."""
    if evidence.runtime.cache is None:
        return [check.error(case, "the cache was not probed") for case in CASES]
    result, marks = evidence.runtime.cache.result, evidence.runtime.cache.marks
    found = [_same(check, result, marks, case) for case in (*SPLITS, "after another prompt")]
    limit = evidence.artifact.max_seq_len
    return [*found, _last(check, result, marks, limit), *(_beyond(check, result, marks[c], c, limit) for c in BEYOND)]


def _same(check: Check, result: Result, marks: dict[str, int], case: str) -> CheckResult:
    where = Where(method="text_decoder", module="kv_cache", index=(PROBE_TOKENS - 1,))
    whole, other = result.outputs.get(marks["whole"]), result.outputs.get(marks[case])
    if whole is None or other is None:
        return check.failed(case, f"text_decoder did not return: {result.message}", where=where)
    mismatch = comparable(actual=other, expected=whole)
    if mismatch:
        return check.failed(case, f"last logits: {mismatch.reason}", where=where)
    value = sqnr_db(actual=other, expected=whole)
    allowed = RESTART_DB if case == "after another prompt" else ALLOWED_DB
    fields = {"measured": {"sqnr_db": value}, "allowed": {"sqnr_db": allowed}, "where": where}
    if value < allowed:
        what = (
            "the same prompt answers otherwise after another one: something of the old prompt is left in the cache"
            if case == "after another prompt"
            else f"{PROBE_TOKENS} tokens prefilled as {case} give other logits than as a whole: check mask, cache positions and cache write-back"
        )
        return check.failed(case, f"{what} ({value:.1f} dB, allowed at least {allowed:g} dB)", **fields)
    return check.passed(case, f"same last logits ({value:.0f} dB)", **fields)


def _last(check: Check, result: Result, marks: dict[str, int], limit: int) -> CheckResult:
    where = Where(method="text_decoder", index=(limit - 1,))
    calls = (marks["last one"], marks["last chunk"])
    if any(call not in result.outputs for call in calls):
        said = next((result.errors[call] for call in calls if call in result.errors), result.message)
        return check.failed(
            "last position",
            f"position {limit - 1} of {limit} cannot be used: {said}. Check mask and cache length.",
            where=where,
        )
    message = f"position {limit - 1} works for one token and for the end of a chunk"
    return check.passed("last position", message, where=where)


def _beyond(check: Check, result: Result, call: int, case: str, limit: int) -> CheckResult:
    where = Where(method="text_decoder", index=(limit,))
    if call in result.errors:
        return check.passed(case, f"refused with an error: {result.errors[call].splitlines()[0][:100]}", where=where)
    if call in result.outputs:
        return check.failed(
            case,
            f"position {limit} of {limit} is accepted: the program reads or writes beyond its cache. Runners must stop "
            f"at {limit}.",
            where=where,
        )
    return check.failed(
        case,
        f"position {limit} of {limit} ends in {result.outcome}: {result.message}. It should be a clean error.",
        where=where,
    )


CHECKS = (Check("kvcache.basic", "kernel", _cases, basic),)
