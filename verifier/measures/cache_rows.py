"""From rows of KV-caches, as a rewired program returned them, to what checks look at: the rows of a 7B model are 1.3 GB."""

from __future__ import annotations

import numpy as np

from verifier.audit.records import Cache
from verifier.core.compare import Array, Mismatch, compare, refusal
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER
from verifier.measures.probes import PERTURBED, Asked, CacheRows, PerturbedToken, PromptRows, WorstRow

WHOLE, SPLIT, MOVED, REPEATED, UNPERTURBED = "whole", "split", "moved", "repeated", "unperturbed"
UNRETURNED = Where(method=DECODER, module="kv_cache")
Tables = dict[str, list[Array]]
"""Rows [T, H, D] of every cache, by the mark of a call."""


def row_of(cache: Cache, row: int) -> Where:
    """The place of a row."""
    return Where(method=DECODER, module=f"{DECODER}.layers.{cache.layer}.attention.{cache.kind}_cache", index=(row,))


def measure_rows(asked: Asked, caches: tuple[Cache, ...], *, rope_theta: float) -> CacheRows:
    """What checks look at. The program is to blame for rows that were not returned, and for those that are not of numbers alone."""
    prompts, base = _tables(asked, caches, WHOLE, SPLIT, MOVED, REPEATED), _tables(asked, caches, UNPERTURBED)
    return CacheRows(
        prompts if isinstance(prompts, Missing) else _prompts(prompts, caches, rope_theta),
        base if isinstance(base, Missing) else _perturbed(asked, caches, base[UNPERTURBED]),
    )


def _table(asked: Asked, mark: str, caches: tuple[Cache, ...]) -> list[Array] | None:
    """Caches [T, H, D] behind a marked call; None if one was not returned."""
    found = []
    for place, cache in enumerate(caches):
        part = asked.result.further.get((asked.marks[mark], place))
        if part is None:
            return None
        found.append(np.moveaxis(part, cache.axis, 1)[0])
    return found


def _tables(asked: Asked, caches: tuple[Cache, ...], *marks: str) -> Tables | Missing:
    if not caches:
        return Missing("the program has no caches: nothing was compared", "verifier")
    tables: Tables = {}
    for mark in marks:
        table = _table(asked, mark, caches)
        if table is None:
            reason = f"the caches were not returned: {asked.result.outcome} {asked.result.message}"
            return Missing(reason, "program", UNRETURNED)
        wrong = _refused(caches, mark, table)
        if wrong is not None:
            return wrong
        tables[mark] = table
    return tables


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
                f"{said}. See layers.finite.", "program", row_of(cache, reason.index[0] if reason.index else 0)
            )
    return None


def _prompts(tables: Tables, caches: tuple[Cache, ...], rope_theta: float) -> PromptRows:
    keys, values = (
        next(place for place, c in enumerate(caches) if (c.kind, c.layer) == (kind, 0)) for kind in ("k", "v")
    )
    before, after = tables[WHOLE][values], tables[MOVED][values]
    table, repeated = tables[REPEATED][keys], tables[REPEATED][values]
    turned = unroped(table, rope_theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(turned - turned[:1]).max((1, 2)) / np.abs(table[0]).max()
    return PromptRows(
        tokens=len(before),
        split=tuple(_worst(a, e) for a, e in zip(tables[SPLIT], tables[WHOLE], strict=True)),
        distinct=len(_places(before[1:] != before[:-1])),
        misplaced=_places(after[1:] != before[:-1]),
        unturned=tuple(np.flatnonzero((table[1:] == table[:-1]).all((1, 2))).tolist()),
        apart=apart,
        moved_values=_places(repeated != repeated[:1]),
    )


def _worst(actual: Array, expected: Array) -> WorstRow | Mismatch:
    made = compare(actual=actual.reshape(len(actual), -1), expected=expected.reshape(len(expected), -1))
    if isinstance(made, Mismatch):
        return made
    return WorstRow(float(made.row_sqnr_db.min()), int(made.row_sqnr_db.argmin()))


def _places(differs: Array) -> tuple[int, ...]:
    """Rows of [T, H, D] in which anything is true."""
    return tuple(np.flatnonzero(differs.any((1, 2))).tolist())


def unroped(keys: Array, theta: float) -> Array:
    """Keys [T, H, D] turned back by position x theta^(-2 i / D), halves paired as Hugging Face does; float64."""
    half = keys.shape[-1] // 2
    angles = np.arange(len(keys))[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = keys[..., :half].astype(np.float64), keys[..., half:].astype(np.float64)
    out: Array = np.concatenate([first * cos + second * sin, second * cos - first * sin], -1)
    return out


def _perturbed(asked: Asked, caches: tuple[Cache, ...], base: list[Array]) -> tuple[PerturbedToken, ...]:
    tokens = [token for token in PERTURBED if f"perturbed {token}" in asked.marks]
    found = []
    for token in tokens:
        table = _table(asked, f"perturbed {token}", caches)
        changed = None if table is None else tuple(_changed(b, a) for b, a in zip(base, table, strict=True))
        found.append(PerturbedToken(token, changed))
    return tuple(found)


def _changed(before: Array, after: Array) -> tuple[int, ...] | Mismatch:
    reason = refusal(after)
    if reason is None and before.shape != after.shape:
        reason = Mismatch(f"shape {list(after.shape)}, expected {list(before.shape)}")
    return _places(before != after) if reason is None else reason
