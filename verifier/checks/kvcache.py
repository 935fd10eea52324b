"""`kvcache.*` by logits: chunks, the limit, histories and poison must not show in what the shipped program answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from verifier.audit.records import Cache
from verifier.checks.bands import TIES, Allowed, up_to_ties
from verifier.checks.check import Fields, Finding, check, failed, fixed_cases, need, one_case, passed, unverified
from verifier.core.compare import EQUAL_DB, Mismatch, compare, refusal
from verifier.core.limits import Limit, limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER
from verifier.measures.evidence import Evidence, Part
from verifier.measures.probes import HISTORIES, POISONS, SPLITS, Asked, CacheEvidence, Pair, beyond, chunk_name

CAPACITY = LAST, ONE_BEYOND, CHUNKS_BEYOND, AFTER = (
    "last position",
    "one token beyond",
    "chunks beyond",
    "cache after an error",
)
_HINTS = {
    "after a full cache": "Keys or values of the old prompt are still used: check that attention ends at the current position.",
    "other methods in between": "Methods write into each other's memory: check that they do not share an arena.",
    "another instance": "Two loaded programs influence each other: look for memory that they share in the process.",
    "rewind behind the prompt": "Attention includes tokens beyond the current position: check mask and attended length.",
    "rewind into the prompt": "Attention still uses overwritten tokens: check cache write-back and positions.",
}


def _equal(_measured: float) -> Limit:
    return limit("equal")


def _where(position: int) -> Where:
    return Where(method=DECODER, module="kv_cache", index=(position,))


def _judge_pairs(asked: Asked, pairs: list[Pair], *, allowed: Allowed, what: str) -> Finding:
    """The first pair, in the order of positions, that is further apart than allowed; the closest one if none is."""
    if not pairs:
        return unverified("no call was made: nothing was compared")
    outputs = asked.result.outputs
    worst, at = EQUAL_DB, pairs[0].position
    for pair in sorted(pairs, key=lambda pair: pair.position):
        actual, expected = outputs.get(pair.actual), outputs.get(pair.expected)
        if actual is None or expected is None:
            said = (
                f"position {pair.position}: text_decoder did not return: {asked.result.outcome} {asked.result.message}"
            )
            return failed(said, where=_where(pair.position))
        made = compare(actual=actual, expected=expected)
        if isinstance(made, Mismatch):
            said = f"position {pair.position}: logits cannot be compared, {made.reason}. {what}"
            return failed(said, where=_where(pair.position))
        value, least = made.sqnr_db, allowed(made.sqnr_db)
        if not least.admits(value):
            said = f"logits at position {pair.position} differ: {value:.1f} dB, allowed at least {least.value:.1f} dB. {what}"
            both: Fields = {"measured": {"sqnr_db": value}, "allowed": {"sqnr_db": least.value}}
            return failed(said, both, where=_where(pair.position))
        if value < worst:
            worst, at = value, pair.position
    fields: Fields = {
        "measured": {"sqnr_db": worst, "pairs": len(pairs)},
        "allowed": {"sqnr_db": allowed(worst).value},
        "where": _where(at),
    }
    words = "equal bit by bit" if worst == EQUAL_DB else f"{worst:.1f} dB or more"
    return passed(f"{len(pairs)} logits compared, {words}", fields)


def _of(asked: Asked, case: str) -> list[Pair]:
    return [pair for pair in asked.pairs if pair.case == case]


@need(Part.CACHE, computed=True)
def probed(evidence: Evidence) -> CacheEvidence | Missing:
    """Histories, poison and rows."""
    return evidence.runtime.cache


@dataclass(frozen=True)
class Filled:
    """The cache to its limit in chunks, what lies beyond it, and what two splits may differ by."""

    limit: int
    vocabulary: int
    chunks: Asked
    capacity: Asked
    allowed: Allowed


@need(Part.CHUNKS, computed=True)
def filled(evidence: Evidence) -> Filled | Missing:
    """The cache to its limit and beyond."""
    cache = evidence.runtime.cache
    if isinstance(cache, Missing):
        return cache
    if isinstance(cache.chunks, Missing):
        return cache.chunks
    if isinstance(cache.capacity, Missing):
        return cache.capacity
    vocabulary = evidence.geometry.text.vocabulary
    return Filled(cache.limit, vocabulary, cache.chunks, cache.capacity, up_to_ties(evidence))


@check(
    "kvcache.chunks",
    step="kernel",
    needs=filled,
    cases=fixed_cases(*SPLITS),
    limit=TIES,
    overlap="what depends on how a prompt is cut also differs from the reference somewhere; this one needs none",
)
def chunks(given: Filled, case: str) -> Finding:
    """The same tokens, up to the limit, give the same logits in chunks of any size as one by one, up to rounding ties."""
    what = "The same tokens, one in each call, give other logits: check mask, cache positions and cache write-back for chunks."
    return _judge_pairs(given.chunks, _of(given.chunks, case), allowed=given.allowed, what=what)


@check(
    "kvcache.history",
    step="kernel",
    needs=probed,
    cases=fixed_cases(*HISTORIES),
    limit="equal",
    overlap="what depends on earlier calls also shows in golden conversations, which follow each other; this one says which history",
)
def history(cache: CacheEvidence, case: str) -> Finding:
    """The logits do not depend on what was in the cache before, on calls of other methods in between, or on another instance of the program."""
    return _judge_pairs(cache.use, _of(cache.use, case), allowed=_equal, what=_HINTS[case])


@check(
    "kvcache.poison",
    step="kernel",
    needs=probed,
    cases=fixed_cases(*POISONS),
    limit="equal",
    overlap="rows beyond the position that are read also show in a mask; this one sees them whatever they hold",
)
def poison(cache: CacheEvidence, case: str) -> Finding:
    """The next logits are the same bits, whatever values the cache holds beyond the current position."""
    asked = cache.poison
    if isinstance(asked, Missing):
        return unverified(asked.reason)
    what = (
        f"{cache.poisons[case]:g} in the cache beyond that position changes the result: check mask and attended length."
    )
    finding = _judge_pairs(asked, _of(asked, case), allowed=_equal, what=what)
    if finding.verdict == "pass" and not _agrees_with_shipped(asked, cache.use):
        return unverified(_NOT_SET)
    return finding


_NOT_SET = (
    "from a cache that was set, the program gives other logits than from its own cache, so this check proves nothing"
)


def _agrees_with_shipped(poison: Asked, use: Asked) -> bool:
    actual = poison.result.outputs.get(poison.marks["next"])
    expected = use.result.outputs.get(use.marks["next"])
    return actual is not None and expected is not None and np.array_equal(actual, expected)


@check(
    "kvcache.capacity",
    step="kernel",
    needs=filled,
    cases=fixed_cases(*CAPACITY),
    limit="equal",
    overlap="a program that writes beyond its cache also answers wrongly near its end; this one asks for the refusal",
)
def capacity(given: Filled, case: str) -> Finding:
    """The last position works. A call beyond it ends in a clean error, from whatever position it starts, and leaves the cache before that position as
    it was."""
    limit, asked = given.limit, given.capacity
    if case == LAST:
        return _last(given.chunks, limit, given.vocabulary)
    if case in (ONE_BEYOND, CHUNKS_BEYOND):
        return _beyond(asked, [chunk for chunk in beyond(limit) if (chunk[1] == 1) == (case == ONE_BEYOND)])
    hint = "A call that ends in an error must not change the cache before its start position."
    # a refused call takes its own pair out of the comparison only if the process died with it
    pairs = [pair for pair in asked.pairs if asked.marks[pair.case] in asked.result.errors]
    return _judge_pairs(asked, pairs, allowed=_equal, what=hint)


def _last(asked: Asked, limit: int, vocabulary: int) -> Finding:
    where = Where(method=DECODER, index=(limit - 1,))
    if asked.marks["last one"] not in asked.result.outputs:
        said = f"position {limit - 1} of {limit} cannot be used: {asked.result.message}. Check mask and cache length."
        return failed(said, where=where)
    logits = asked.result.outputs[asked.marks["last one"]]
    reason = refusal(logits)
    if reason is None and logits.shape[-1] != vocabulary:
        reason = Mismatch(f"{logits.shape[-1]} numbers, expected {vocabulary}")
    if reason is not None:
        return failed(f"position {limit - 1} of {limit} gives no logits: {reason.reason}", where=where)
    return passed(f"position {limit - 1} works", where=where)


def _beyond(asked: Asked, refused: list[tuple[int, int]]) -> Finding:
    kinds = set()
    for start, size in refused:
        call, limit = asked.marks[chunk_name(start, size)], start + size - 1
        where = Where(method=DECODER, index=(start,))
        if call in asked.result.outputs:
            said = f"a chunk of {size} from position {start} is accepted, although the cache ends at {limit}"
            hint = f"The program reads or writes beyond its cache. Runners must stop at {limit}."
            return failed(f"{said}. {hint}", where=where)
        if call not in asked.result.errors:
            said = f"a chunk of {size} from position {start} ends in {asked.result.outcome}: {asked.result.message}"
            return failed(f"{said}. The call must return an error.", where=where)
        kinds.add(asked.result.errors[call].split("error:")[-1].strip().splitlines()[0])
    return passed(f"{len(refused)} calls refused with an error ({', '.join(sorted(kinds))})")


@dataclass(frozen=True)
class Kept:
    """The caches that outlive a call, and all other evidence."""

    evidence: Evidence
    caches: tuple[Cache, ...]


@need(Part.CACHE, computed=True)
def kept(evidence: Evidence) -> Kept | Missing:
    """The caches of the file."""
    cache = evidence.runtime.cache
    caches = cache if isinstance(cache, Missing) else cache.caches
    if isinstance(caches, Missing):
        return replace(caches, where=Where(method=DECODER, module="kv_cache"))
    return Kept(evidence, caches)


@check(
    "kvcache.memory",
    step="lowering",
    needs=kept,
    cases=one_case,
    overlap="caches that overlap also hold wrong rows; this one needs no call",
)
def memory(given: Kept, _case: str) -> Finding:
    """The tensors that outlive a call are exactly two caches for each layer: 2 x layers x T x kv_heads x head_dim x 4 bytes."""
    evidence = given.evidence
    text, length = evidence.geometry.text, evidence.recipe.max_context_len
    expected = text.cache_bytes(length)
    actual = sum(one.size_bytes for one in given.caches)
    fields: Fields = {"measured": {"cache_bytes": actual}, "allowed": {"cache_bytes": expected}}
    product = f"2 x {text.layers} x {length} x {text.kv_heads} x {text.head_dim} x 4"
    if actual != expected:
        said = f"the caches take {actual:,} bytes, expected {expected:,} ({product}). Check layers, heads and --max-context-len of the export."
        return failed(said, fields, where=Where(method=DECODER, module="kv_cache"))
    return passed(f"the caches take {actual:,} bytes, {product}", fields)


CHECKS = (memory, chunks, capacity, history, poison)
