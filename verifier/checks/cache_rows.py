"""`kvcache.*` by the cache's own rows: whose they are, how they are turned, and what they depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.audit.caches import Cache
from verifier.checks.bands import TIES, up_to_ties
from verifier.checks.check import Fields, Finding, check, failed, fixed_cases, need, passed, unverified
from verifier.core.compare import EQUAL_DB, Array, Mismatch, compare, refusal
from verifier.core.limits import limit
from verifier.evidence import Evidence, Part
from verifier.families.conventions import DECODER
from verifier.operators.rounding import UNIT
from verifier.probes.kvcache import MASKED, PERTURBED, Asked
from verifier.types import Missing, Where

ROWS = ("other chunks", "own token", "rotation")
CHUNKS = ("first chunk", "second chunk")


def _where(cache: Cache, row: int) -> Where:
    return Where(method=DECODER, module=f"{DECODER}.layers.{cache.layer}.attention.{cache.kind}_cache", index=(row,))


def _table(asked: Asked, mark: str, caches: tuple[Cache, ...]) -> list[Array] | None:
    """Caches [T, H, D] behind a marked call; None if one was not returned."""
    found = []
    for place, cache in enumerate(caches):
        part = asked.result.further.get((asked.marks[mark], place))
        if part is None:
            return None
        found.append(np.moveaxis(part, cache.axis, 1)[0])
    return found


Tables = dict[str, list[Array]]
"""Rows [T, H, D] of every cache, by the mark of a call."""
UNRETURNED = Where(method=DECODER, module="kv_cache")
WHOLE, SPLIT, MOVED, REPEATED, UNPERTURBED = "whole", "split", "moved", "repeated", "unperturbed"


@dataclass(frozen=True)
class Rows:
    """The caches, their rows behind the calls that were marked, and all other evidence."""

    evidence: Evidence
    caches: tuple[Cache, ...]
    tables: Tables


def _take(evidence: Evidence, *marks: str) -> Rows | Missing:
    """Rows behind some calls. The program is to blame if they were not returned, or if they are not of numbers alone."""
    cache = evidence.runtime.cache
    if isinstance(cache, Missing):
        return cache
    if isinstance(cache.rows, Missing):
        return cache.rows
    assert not isinstance(cache.caches, Missing), "the program with readable caches ran"
    if not cache.caches:
        return Missing("the program has no caches: nothing was compared", "verifier")
    tables: Tables = {}
    for mark in marks:
        table = _table(cache.rows, mark, cache.caches)
        if table is None:
            said = f"the caches were not returned: {cache.rows.result.outcome} {cache.rows.result.message}"
            return Missing(said, "program", UNRETURNED)
        wrong = _refused(cache.caches, mark, table)
        if wrong is not None:
            return wrong
        tables[mark] = table
    return Rows(evidence, cache.caches, tables)


def _refused(caches: tuple[Cache, ...], name: str, tables: list[Array]) -> Missing | None:
    """Rows of a cache that are not of numbers alone, or of another shape."""
    for cache, table in zip(caches, tables, strict=True):
        wanted = [size for axis, size in enumerate(cache.sizes) if axis not in (0, cache.axis)]
        reason = refusal(table)
        if reason is None and list(table.shape[1:]) != wanted:
            reason = Mismatch(f"rows of {list(table.shape[1:])}, expected {wanted}")
        if reason is not None:
            said = f"the {cache.kind.upper()} cache of layer {cache.layer} ({name}) cannot be compared: {reason.reason}"
            return Missing(
                f"{said}. See layers.finite.", "program", _where(cache, reason.index[0] if reason.index else 0)
            )
    return None


@need(Part.CACHE, computed=True)
def prompts(evidence: Evidence) -> Rows | Missing:
    """Rows of whole prompts: in two splits, moved by one token, of one token repeated."""
    return _take(evidence, WHOLE, SPLIT, MOVED, REPEATED)


@check(
    "kvcache.rows",
    step="kernel",
    needs=prompts,
    cases=fixed_cases(*ROWS),
    limit=(*TIES, "kvcache.rows.distinct", "kvcache.rows.rotation", "layers.kernel"),
)
def rows(given: Rows, case: str) -> Finding:
    """Cache rows do not depend on how the prompt is cut into chunks (up to rounding ties). Each row belongs to its own token and is rotated by its
    own position."""
    tables, caches = given.tables, given.caches
    if case == ROWS[0]:
        return _other_chunks(given.evidence, caches, tables[WHOLE], tables[SPLIT])
    if case == ROWS[1]:
        return _own_token(caches, tables[WHOLE], tables[MOVED])
    return _rotation(given.evidence, caches, tables[REPEATED])


def _other_chunks(evidence: Evidence, caches: tuple[Cache, ...], whole: list[Array], split: list[Array]) -> Finding:
    worst, at = EQUAL_DB, (caches[0], 0)
    for cache, actual, expected in zip(caches, split, whole, strict=True):
        made = compare(actual=actual.reshape(len(actual), -1), expected=expected.reshape(len(expected), -1))
        if isinstance(made, Mismatch):
            return failed(f"rows in other chunks cannot be compared: {made.reason}", where=_where(cache, 0))
        if made.row_sqnr_db.min() < worst:
            worst, at = float(made.row_sqnr_db.min()), (cache, int(made.row_sqnr_db.argmin()))
    allowed = up_to_ties(evidence)(worst)
    fields: Fields = {"measured": {"sqnr_db": worst}, "allowed": {"sqnr_db": allowed.value}, "where": _where(*at)}
    if not allowed.admits(worst):
        said = f"row {at[1]} of the {at[0].kind.upper()} cache of layer {at[0].layer} is another in chunks of 1, 2, 31, … than as a whole"
        hint = "Check cache positions, write-back and the mask of the layer before."
        return failed(f"{said}: {worst:.1f} dB, allowed at least {allowed.value:.1f} dB. {hint}", fields)
    return passed(f"all rows of {len(caches)} caches, {worst:.0f} dB and more", fields)


def _own_token(caches: tuple[Cache, ...], whole: list[Array], moved: list[Array]) -> Finding:
    """Values of layer 0 depend on the token alone: moved by one position, they must be the same bits one row further."""
    cache, before, after = next(
        (c, w, m) for c, w, m in zip(caches, whole, moved, strict=True) if (c.kind, c.layer) == ("v", 0)
    )
    wrong = np.flatnonzero((after[1:] != before[:-1]).any((1, 2)))
    distinct = np.flatnonzero((before[1:] != before[:-1]).any((1, 2)))
    fields: Fields = {"measured": {"wrong": len(wrong)}, "allowed": {"wrong": 0}}
    if len(before) < 2 or not limit("kvcache.rows.distinct").admits(len(distinct) / len(before)):
        said = f"only {len(distinct) + 1} of {len(before)} rows of the V cache of layer 0 differ from the one before, though the tokens do"
        return failed(
            f"{said}. Rows do not hold their own tokens: check the cache's write positions.",
            where=_where(cache, 0),
        )
    if len(wrong):
        row = int(wrong[0])
        said = f"row {row + 1} of the V cache of layer 0 does not hold the token at {row + 1}: with all tokens moved by one it is not row {row}"
        return failed(f"{said}. Check the cache's write positions.", fields, where=_where(cache, row + 1))
    return passed(f"{len(before) - 1} rows of layer 0 follow their tokens, bit by bit", fields)


def unroped(keys: Array, theta: float) -> Array:
    """Keys [T, H, D] turned back by position x theta^(-2 i / D), halves paired as Hugging Face does; float64."""
    half = keys.shape[-1] // 2
    angles = np.arange(len(keys))[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = keys[..., :half].astype(np.float64), keys[..., half:].astype(np.float64)
    out: Array = np.concatenate([first * cos + second * sin, second * cos - first * sin], -1)
    return out


def _rotation(evidence: Evidence, caches: tuple[Cache, ...], repeated: list[Array]) -> Finding:
    """One token at every position: its keys in layer 0 differ, and turned back they are the same; so the score of two keys
    depends on their distance alone. Its values are the same bits."""
    keys, values = (
        next((c, table) for c, table in zip(caches, repeated, strict=True) if (c.kind, c.layer) == (kind, 0))
        for kind in ("k", "v")
    )
    cache, table = keys
    still = np.flatnonzero((table[1:] == table[:-1]).all((1, 2)))
    if len(still):
        said = f"the same token has the same key at positions {still[0]} and {still[0] + 1}: RoPE does nothing there"
        return failed(
            f"{said}. Check rope_theta, the RoPE tables and input_pos.", where=_where(cache, int(still[0]) + 1)
        )
    turned = unroped(table, evidence.geometry.text.rope_theta)
    apart = np.abs(turned - turned[:1]).max((1, 2)) / np.abs(table[0]).max()
    limits = (2 * np.arange(len(table)) + limit("kvcache.rows.rotation").value) * UNIT
    share = np.where(np.isfinite(apart), apart / limits, np.inf)
    row, worst = int(share.argmax()), float(share.max())
    within = limit("layers.kernel")
    fields: Fields = {
        "measured": {"share_of_limit": worst if np.isfinite(worst) else None},
        "allowed": {"share_of_limit": within.value},
    }
    if not within.admits(worst):
        row = int(np.flatnonzero(share > within.value)[0])
        said = f"the key at position {row} is not the token's key turned by {row} steps of RoPE: {apart[row]:.2g} off, fp32 allows {limits[row]:.2g}"
        return failed(
            f"{said}. Check the RoPE tables, rope_theta, half-split against interleaved, and input_pos.",
            fields,
            where=_where(cache, row),
        )
    odd = np.flatnonzero((values[1] != values[1][:1]).any((1, 2)))
    if len(odd):
        said = f"the same token has another value at position {odd[0]} than at 0, though values are not turned"
        return failed(f"{said}. Check the cache's write positions.", fields, where=_where(values[0], int(odd[0])))
    return passed(f"{len(table)} positions, closest {worst:.2g} of fp32's rounding at {row}", fields)


@dataclass(frozen=True)
class Perturbed(Rows):
    """Rows of one prompt, and of the same with one token changed; places of these tokens by chunk."""

    places: dict[str, list[int]]
    asked: Asked


@need(Part.CACHE, computed=True)
def perturbed(evidence: Evidence) -> Perturbed | Missing:
    """Rows of a prompt in two chunks, with and without a perturbed token."""
    found = _take(evidence, UNPERTURBED)
    if isinstance(found, Missing):
        return found
    cache = evidence.runtime.cache
    assert not isinstance(cache, Missing) and isinstance(cache.rows, Asked)
    asked_of = [j for j in PERTURBED if f"perturbed {j}" in cache.rows.marks]
    places = {CHUNKS[0]: [j for j in asked_of if j < MASKED[0]], CHUNKS[1]: [j for j in asked_of if j >= MASKED[0]]}
    return Perturbed(evidence, found.caches, found.tables, places, cache.rows)


@check("kvcache.mask", step="lowering", needs=perturbed, cases=fixed_cases(*CHUNKS), limit="equal")
def mask(given: Perturbed, case: str) -> Finding:
    """Replacing token j changes row j in every layer's cache and some later row in every layer above the first, and never an earlier row."""
    places, caches = given.places[case], given.caches
    if not places:
        return unverified("no token of this chunk was perturbed")
    for j in places:
        wrong = _mask(caches, given.tables[UNPERTURBED], _table(given.asked, f"perturbed {j}", caches), j)
        if wrong is not None:
            return wrong
    looked_at = sum(MASKED) * len(caches) * len(places)
    said = f"{len(places)} tokens perturbed, {looked_at} rows looked at"
    return passed(said, measured={"wrong": 0}, allowed={"wrong": 0})


def _mask(caches: tuple[Cache, ...], base: list[Array], made: list[Array] | None, j: int) -> Finding | None:
    if made is None:
        return failed("the caches were not returned", where=Where(method=DECODER, module="kv_cache"))
    for cache, before, after in zip(caches, base, made, strict=True):
        reason = refusal(after)
        if reason is not None or before.shape != after.shape:
            said = reason.reason if reason is not None else f"shape {list(after.shape)}, expected {list(before.shape)}"
            return failed(f"rows with token {j} perturbed cannot be compared: {said}", where=_where(cache, j))
        changed = np.flatnonzero((before != after).any((1, 2)))
        what = f"token {j} was another: in the {cache.kind.upper()} cache of layer {cache.layer} "
        if len(changed) and changed[0] < j:
            said = f"row {changed[0]}, before it, changed. An earlier token sees a later one: check the mask of layer {cache.layer - 1}."
            return failed(what + said, where=_where(cache, int(changed[0])))
        if j not in changed:
            said = f"row {j} did not change. The row does not hold its own token: check cache positions and write-back."
            return failed(what + said, where=_where(cache, j))
        behind = changed[changed > j]
        if cache.layer == 0 and len(behind):
            said = f"row {behind[0]} changed, though keys and values of layer 0 depend on their own token alone. Check write positions."
            return failed(what + said, where=_where(cache, int(behind[0])))
        # a later chunk must see an earlier one; tokens of the same chunk are behind it too
        wanted = [(j + 1, MASKED[0]), (MASKED[0], sum(MASKED))] if j < MASKED[0] else [(j + 1, sum(MASKED))]
        for first, last in wanted if cache.layer else []:
            if first < last and not ((behind >= first) & (behind < last)).any():
                said = f"no row from {first} to {last - 1} changed. Later tokens do not see it: check the mask of layer {cache.layer - 1}."
                return failed(what + said, where=_where(cache, first))
    return None


CHECKS = (mask, rows)
