"""`kvcache.*` by logits: chunks, the limit, histories and poison must not show in what the shipped program answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.checks.common import Allowed, Check, fixed_cases, one_case, up_to_ties
from verifier.core.compare import EQUAL_DB, Mismatch, compare, refusal
from verifier.core.limits import Limit, limit
from verifier.errors import ArtifactError
from verifier.evidence import Evidence
from verifier.probes.kvcache import HISTORIES, POISONS, SPLITS, Asked, beyond, chunk_name, poisons
from verifier.probes.tape import Pair
from verifier.types import CheckResult, Where

CAPACITY = ("last position", "one token beyond", "chunks beyond", "cache after an error")
_HINTS = {
    "after a full cache": "Something of the old prompt is left: check that attention ends at the current position.",
    "other methods in between": "Methods write into each other's memory: check that they do not share an arena.",
    "another instance": "Two loaded programs influence each other: look for memory that belongs to the process.",
    "rewind behind the prompt": "Tokens beyond the current position are seen: check mask and attended length.",
    "rewind into the prompt": "Overwritten tokens are still seen: check cache write-back and positions.",
}


def _equal(_measured: float) -> Limit:
    return limit("equal")


def _where(position: int) -> Where:
    return Where(method="text_decoder", module="kv_cache", index=(position,))


def _judge_pairs(
    check: Check, asked: Asked, case: str, pairs: list[Pair], *, allowed: Allowed, what: str
) -> CheckResult:
    """The first pair, in the order of positions, that is further apart than allowed; the closest one if none is."""
    if not pairs:
        return check.error(case, "nothing was asked")
    outputs = asked.result.outputs
    worst, at = EQUAL_DB, pairs[0].position
    for pair in sorted(pairs, key=lambda pair: pair.position):
        actual, expected = outputs.get(pair.actual), outputs.get(pair.expected)
        if actual is None or expected is None:
            said = (
                f"position {pair.position}: text_decoder did not return: {asked.result.outcome} {asked.result.message}"
            )
            return check.failed(case, said, where=_where(pair.position))
        made = compare(actual=actual, expected=expected)
        if isinstance(made, Mismatch):
            said = f"position {pair.position}: logits cannot be compared, {made.reason}. {what}"
            return check.failed(case, said, where=_where(pair.position))
        value, least = made.sqnr_db, allowed(made.sqnr_db)
        if not least.admits(value):
            said = f"logits at position {pair.position} differ: {value:.1f} dB, allowed at least {least.value:.1f} dB. {what}"
            both = {"measured": {"sqnr_db": value}, "allowed": {"sqnr_db": least.value}}
            return check.failed(case, said, where=_where(pair.position), **both)
        if value < worst:
            worst, at = value, pair.position
    fields: dict[str, Any] = {
        "measured": {"sqnr_db": worst, "pairs": len(pairs)},
        "allowed": {"sqnr_db": allowed(worst).value},
        "where": _where(at),
    }
    words = "the same bits" if worst == EQUAL_DB else f"{worst:.1f} dB and more"
    return check.passed(case, f"{len(pairs)} logits compared, {words}", **fields)


def _of(asked: Asked, case: str) -> list[Pair]:
    return [pair for pair in asked.pairs if pair.case == case]


def chunks(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The same tokens to the limit give the same logits in any chunks as one by one, up to rounding ties."""
    cache = evidence.runtime.cache
    if cache is None:
        return [check.error(case, "the cache was not probed") for case in SPLITS]
    allowed = up_to_ties(evidence)
    what = "The same tokens one by one give other logits: check mask, cache positions and cache write-back for chunks."
    return [
        _judge_pairs(check, cache.chunks, case, _of(cache.chunks, case), allowed=allowed, what=what) for case in SPLITS
    ]


def history(check: Check, evidence: Evidence) -> list[CheckResult]:
    """What was in the cache before, other methods, another instance: nothing of it shows."""
    cache = evidence.runtime.cache
    if cache is None:
        return [check.error(case, "the cache was not probed") for case in HISTORIES]
    return [
        _judge_pairs(check, cache.use, case, _of(cache.use, case), allowed=_equal, what=_HINTS[case])
        for case in HISTORIES
    ]


def poison(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Whatever stands in the cache beyond the current position, the next logits are the same bits."""
    cache = evidence.runtime.cache
    if cache is None or cache.poison is None:
        reason = "the cache was not probed" if cache is None else f"the cache cannot be set: {_unread(cache.caches)}"
        return [check.error(case, reason) for case in POISONS]
    values = poisons(evidence.artifact)
    found = []
    for case in POISONS:
        what = f"{values[case]:g} stands beyond that position and leaks in: check mask and attended length."
        result = _judge_pairs(check, cache.poison, case, _of(cache.poison, case), allowed=_equal, what=what)
        fresh = _agrees_with_shipped(cache.poison, cache.use)
        found.append(result if result.verdict != "pass" or fresh else check.error(case, _NOT_SET))
    return found


_NOT_SET = "the program does not answer from the cache that was set as from its own, so the poison proves nothing"


def _agrees_with_shipped(poison: Asked, use: Asked) -> bool:
    actual = poison.result.outputs.get(poison.marks["next"])
    expected = use.result.outputs.get(use.marks["next"])
    return actual is not None and expected is not None and np.array_equal(actual, expected)


def _unread(caches: object) -> str:
    return caches.one_line if isinstance(caches, ArtifactError) else "the program with readable caches did not run"


def capacity(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The last position works; one past it is a clean error from every start, and the cache before it is as it was."""
    cache = evidence.runtime.cache
    if cache is None:
        return [check.error(case, "the cache was not probed") for case in CAPACITY]
    limit, asked = cache.limit, cache.capacity
    one, longer = ([chunk for chunk in beyond(limit) if (chunk[1] == 1) == single] for single in (True, False))
    hint = "The program computes something else after a refused call: an error must leave what lies before its start."
    # a refused call takes its own pair out of the comparison only if the process died with it
    pairs = [pair for pair in asked.pairs if asked.marks[pair.case] in asked.result.errors]
    intact = _judge_pairs(check, asked, "cache after an error", pairs, allowed=_equal, what=hint)
    return [
        _last(check, cache.chunks, limit, evidence.checkpoint.geometry.text.vocabulary),
        _beyond(check, asked, "one token beyond", one),
        _beyond(check, asked, "chunks beyond", longer),
        intact,
    ]


def _last(check: Check, asked: Asked, limit: int, vocabulary: int) -> CheckResult:
    where = Where(method="text_decoder", index=(limit - 1,))
    if asked.marks["last one"] not in asked.result.outputs:
        said = f"position {limit - 1} of {limit} cannot be used: {asked.result.message}. Check mask and cache length."
        return check.failed("last position", said, where=where)
    logits = asked.result.outputs[asked.marks["last one"]]
    reason = refusal(logits)
    if reason is None and logits.shape[-1] != vocabulary:
        reason = Mismatch(f"{logits.shape[-1]} numbers, expected {vocabulary}")
    if reason is not None:
        return check.failed(
            "last position", f"position {limit - 1} of {limit} gives no logits: {reason.reason}", where=where
        )
    return check.passed("last position", f"position {limit - 1} works", where=where)


def _beyond(check: Check, asked: Asked, case: str, refused: list[tuple[int, int]]) -> CheckResult:
    kinds = set()
    for start, size in refused:
        call, limit = asked.marks[chunk_name(start, size)], start + size - 1
        where = Where(method="text_decoder", index=(start,))
        if call in asked.result.outputs:
            said = f"a chunk of {size} from position {start} is accepted, though the cache ends at {limit}"
            hint = f"The program reads or writes beyond its cache. Runners must stop at {limit}."
            return check.failed(case, f"{said}. {hint}", where=where)
        if call not in asked.result.errors:
            said = f"a chunk of {size} from position {start} ends in {asked.result.outcome}: {asked.result.message}"
            return check.failed(case, f"{said}. It should be a clean error.", where=where)
        kinds.add(asked.result.errors[call].split("error:")[-1].strip().splitlines()[0])
    return check.passed(case, f"{len(refused)} refused with an error ({', '.join(sorted(kinds))})")


def memory(check: Check, evidence: Evidence) -> list[CheckResult]:
    """What outlives a call is exactly two caches for each layer: 2 x layers x T x kv_heads x head_dim x 4 bytes."""
    cache = evidence.runtime.cache
    if cache is None or not isinstance(cache.caches, tuple):
        reason = "the cache was not probed" if cache is None else _unread(cache.caches)
        give = check.error if cache is None else check.failed
        return [give("program", reason, where=Where(method="text_decoder", module="kv_cache"))]
    text, length = evidence.checkpoint.geometry.text, evidence.recipe.max_context_len
    expected = 2 * text.layers * length * text.kv_heads * text.head_dim * 4
    actual = sum(one.size_bytes for one in cache.caches)
    fields = {"measured": {"cache_bytes": actual}, "allowed": {"cache_bytes": expected}}
    product = f"2 x {text.layers} x {length} x {text.kv_heads} x {text.head_dim} x 4"
    if actual != expected:
        said = f"the caches take {actual:,} bytes, {product} are {expected:,}. Check layers, heads and --max-context-len of the export."
        return [check.failed("program", said, where=Where(method="text_decoder", module="kv_cache"), **fields)]
    return [check.passed("program", f"{actual:,} bytes are {product}", **fields)]


CHECKS = (
    Check("kvcache.memory", "lowering", one_case, memory),
    Check("kvcache.chunks", "kernel", fixed_cases(*SPLITS), chunks),
    Check("kvcache.capacity", "kernel", fixed_cases(*CAPACITY), capacity),
    Check("kvcache.history", "kernel", fixed_cases(*HISTORIES), history),
    Check("kvcache.poison", "kernel", fixed_cases(*POISONS), poison),
)
