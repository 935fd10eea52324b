"""`kvcache.*` by the cache's own rows: whose they are, how they are turned, and what they depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from verifier.audit.records import Cache
from verifier.checks.bands import TIES, up_to_ties
from verifier.checks.check import Fields, Finding, check, failed, fixed_cases, need, passed, unverified
from verifier.core.compare import Mismatch
from verifier.core.limits import UNIT, limit
from verifier.core.types import Missing
from verifier.measures.cache_rows import UNRETURNED, row_of
from verifier.measures.evidence import Evidence, Part
from verifier.measures.probes import MASKED, CacheEvidence, CacheRows, PerturbedToken, PromptRows, WorstRow

ROWS = ("other chunks", "own token", "rotation")
CHUNKS = ("first chunk", "second chunk")


def _rows(cache: CacheEvidence | Missing) -> CacheRows | Missing:
    """What was measured of the rows."""
    return cache if isinstance(cache, Missing) else cache.rows


@dataclass(frozen=True)
class Prompts:
    """The caches, what was measured of their rows behind whole prompts, and all other evidence."""

    evidence: Evidence
    caches: tuple[Cache, ...]
    rows: PromptRows


@need(Part.CACHE, computed=True)
def prompts(evidence: Evidence) -> Prompts | Missing:
    """Rows of whole prompts: in two splits, moved by one token, of one token repeated."""
    rows = _rows(evidence.runtime.cache)
    if isinstance(rows, Missing):
        return rows
    if isinstance(rows.prompts, Missing):
        return rows.prompts
    return Prompts(evidence, _caches(evidence), rows.prompts)


def _caches(evidence: Evidence) -> tuple[Cache, ...]:
    cache = evidence.runtime.cache
    assert not isinstance(cache, Missing) and not isinstance(cache.caches, Missing), (
        "the program with readable caches ran"
    )
    return cache.caches


@check(
    "kvcache.rows",
    step="kernel",
    needs=prompts,
    cases=fixed_cases(*ROWS),
    limit=(*TIES, "kvcache.rows.distinct", "kvcache.rows.rotation", "layers.kernel"),
    overlap="wrong rows of the cache give wrong logits; this one says which rows",
)
def rows(given: Prompts, case: str) -> Finding:
    """Cache rows do not depend on how the prompt is cut into chunks (up to rounding ties). Each row belongs to its own token and is rotated by its
    own position."""
    if case == ROWS[0]:
        return _other_chunks(given)
    if case == ROWS[1]:
        return _own_token(given)
    return _rotation(given)


def _first_layer(caches: tuple[Cache, ...], kind: str) -> Cache:
    return next(cache for cache in caches if (cache.kind, cache.layer) == (kind, 0))


def _other_chunks(given: Prompts) -> Finding:
    found: list[tuple[Cache, WorstRow]] = []
    for each, made in zip(given.caches, given.rows.split, strict=True):
        if isinstance(made, Mismatch):
            return failed(
                f"cache rows of the prompt in chunks cannot be compared with those of one chunk: {made.reason}",
                where=row_of(each, 0),
            )
        found.append((each, made))
    cache, shown = min(found, key=lambda pair: (math.isfinite(pair[1].sqnr_db), pair[1].sqnr_db))
    worst, row = shown.sqnr_db, shown.row
    allowed = up_to_ties(given.evidence)(worst)
    fields: Fields = {
        "measured": {"sqnr_db": worst},
        "allowed": {"sqnr_db": allowed.value},
        "where": row_of(cache, row),
    }
    if not allowed.admits(worst):
        said = f"row {row} of the {cache.kind.upper()} cache of layer {cache.layer} differs between chunks of 1, 2, 31, … and one chunk"
        hint = "Check cache positions, write-back and the mask of the layer before."
        return failed(f"{said}: {worst:.1f} dB, allowed at least {allowed.value:.1f} dB. {hint}", fields)
    return passed(f"all rows of {len(given.caches)} caches agree, {worst:.0f} dB or more", fields)


def _own_token(given: Prompts) -> Finding:
    """Values of layer 0 depend on the token alone: moved by one position, they must be the same bits one row further."""
    cache, measured = _first_layer(given.caches, "v"), given.rows
    tokens, wrong, distinct = measured.tokens, measured.misplaced, measured.distinct
    fields: Fields = {"measured": {"wrong": len(wrong)}, "allowed": {"wrong": 0}}
    if tokens < 2 or not limit("kvcache.rows.distinct").admits(distinct / tokens):
        said = f"only {distinct + 1} of {tokens} rows of the V cache of layer 0 differ from the row before, although the tokens differ"
        return failed(
            f"{said}. Rows do not hold their own tokens: check the cache's write positions.",
            where=row_of(cache, 0),
        )
    if wrong:
        row = wrong[0]
        said = f"row {row + 1} of the V cache of layer 0 does not hold its token: with all tokens moved by one position it must equal the former row {row}, and differs"
        return failed(f"{said}. Check the cache's write positions.", fields, where=row_of(cache, row + 1))
    return passed(f"{tokens - 1} rows of layer 0 move with their tokens, bit by bit", fields)


def _rotation(given: Prompts) -> Finding:
    """One token at every position: its keys in layer 0 differ, and turned back they are the same; so the score of two keys
    depends on their distance alone. Its values are the same bits."""
    cache, still, apart = _first_layer(given.caches, "k"), given.rows.unturned, given.rows.apart
    if still:
        said = f"the same token has the same key at positions {still[0]} and {still[0] + 1}: RoPE has no effect there"
        return failed(f"{said}. Check rope_theta, the RoPE tables and input_pos.", where=row_of(cache, still[0] + 1))
    limits = (2 * np.arange(len(apart)) + limit("kvcache.rows.rotation").value) * UNIT
    share = np.where(np.isfinite(apart), apart / limits, np.inf)
    row, worst = int(share.argmax()), float(share.max())
    within = limit("layers.kernel")
    fields: Fields = {
        "measured": {"share_of_limit": worst if np.isfinite(worst) else None},
        "allowed": {"share_of_limit": within.value},
    }
    if not within.admits(worst):
        row = int(np.flatnonzero(share > within.value)[0])
        said = f"the key at position {row} is not the token's key rotated by RoPE to that position: relative difference {apart[row]:.2g}, allowed {limits[row]:.2g} (fp32 rounding)"
        return failed(
            f"{said}. Check the RoPE tables, rope_theta, half-split against interleaved, and input_pos.",
            fields,
            where=row_of(cache, row),
        )
    odd = given.rows.moved_values
    if odd:
        said = f"the value of the same token differs between positions {odd[0]} and 0, although RoPE does not rotate values"
        return failed(
            f"{said}. Check the cache's write positions.", fields, where=row_of(_first_layer(given.caches, "v"), odd[0])
        )
    return passed(
        f"{len(apart)} positions; the largest difference is {worst:.2g} of the fp32 rounding bound, at position {row}",
        fields,
    )


@dataclass(frozen=True)
class Perturbed:
    """The caches, and the rows that changed with one token, by the chunk in which that token is."""

    caches: tuple[Cache, ...]
    tokens: dict[str, list[PerturbedToken]]


@need(Part.CACHE, computed=True)
def perturbed(evidence: Evidence) -> Perturbed | Missing:
    """Rows of a prompt in two chunks, with and without a perturbed token."""
    rows = _rows(evidence.runtime.cache)
    if isinstance(rows, Missing):
        return rows
    if isinstance(rows.perturbed, Missing):
        return rows.perturbed
    tokens: dict[str, list[PerturbedToken]] = {chunk: [] for chunk in CHUNKS}
    for one in rows.perturbed:
        tokens[CHUNKS[0] if one.token < MASKED[0] else CHUNKS[1]].append(one)
    return Perturbed(_caches(evidence), tokens)


@check(
    "kvcache.mask",
    step="lowering",
    needs=perturbed,
    cases=fixed_cases(*CHUNKS),
    limit="equal",
    overlap="a mask that lets later tokens through also gives other logits; this one needs no reference",
)
def mask(given: Perturbed, case: str) -> Finding:
    """Replacing token j changes row j in every layer's cache and some later row in every layer above the first, and never an earlier row."""
    tokens = given.tokens[case]
    if not tokens:
        return unverified("no token of this chunk was replaced")
    for one in tokens:
        wrong = _mask(given.caches, one)
        if wrong is not None:
            return wrong
    looked_at = sum(MASKED) * len(given.caches) * len(tokens)
    said = f"{len(tokens)} tokens replaced one at a time, {looked_at} rows compared"
    return passed(said, measured={"wrong": 0}, allowed={"wrong": 0})


def _mask(caches: tuple[Cache, ...], one: PerturbedToken) -> Finding | None:
    if one.changed is None:
        return failed("the caches were not returned", where=UNRETURNED)
    for cache, changed in zip(caches, one.changed, strict=True):
        if isinstance(changed, Mismatch):
            said = f"rows with token {one.token} replaced cannot be compared: {changed.reason}"
            return failed(said, where=row_of(cache, one.token))
        wrong = _wrong_row(cache, changed, one.token)
        if wrong is not None:
            row, said = wrong
            return failed(f"token {one.token} was replaced, {said}", where=row_of(cache, row))
    return None


def _wrong_row(cache: Cache, changed: tuple[int, ...], j: int) -> tuple[int, str] | None:
    """The first row of a cache that changed with token j and must not have, or did not and must have; and what is wrong with it."""
    table = f"the {cache.kind.upper()} cache of layer {cache.layer}"
    if changed and changed[0] < j:
        said = f"and row {changed[0]} of {table}, before it, changed. An earlier token attends to a later one: check the mask of layer {cache.layer - 1}."
        return changed[0], said
    if j not in changed:
        return (
            j,
            f"but row {j} of {table} did not change. The row does not hold its own token: check cache positions and write-back.",
        )
    behind = [row for row in changed if row > j]
    if cache.layer == 0 and behind:
        said = f"and row {behind[0]} of {table} changed, although keys and values of layer 0 depend on their own token alone. Check write positions."
        return behind[0], said
    # a later chunk must see an earlier one; tokens of the same chunk are behind it too
    wanted = [(j + 1, MASKED[0]), (MASKED[0], sum(MASKED))] if j < MASKED[0] else [(j + 1, sum(MASKED))]
    for first, last in wanted if cache.layer else []:
        if first < last and not any(first <= row < last for row in behind):
            said = f"but no row from {first} to {last - 1} of {table} changed. Later tokens do not attend to it: check the mask of layer {cache.layer - 1}."
            return first, said
    return None


CHECKS = (mask, rows)
