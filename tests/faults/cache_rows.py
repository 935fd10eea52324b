"""Rows of KV-caches as a sound program would return them, by arithmetic: small enough to be broken in memory, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from verifier.audit.records import Cache
from verifier.core.types import Missing
from verifier.measures.cache_rows import MOVED, REPEATED, SPLIT, UNPERTURBED, WHOLE, measure_rows
from verifier.measures.evidence import Evidence
from verifier.measures.probes import MASKED, PERTURBED, Asked
from verifier.runner.protocol import Array, Result

TOKENS, HEADS, WIDTH, LAYERS = 768, 2, 8, 4
CACHES = tuple(
    Cache(2 * layer + place, layer, kind, 1, (1, TOKENS, HEADS, WIDTH), 4 * TOKENS * HEADS * WIDTH)
    for layer in range(LAYERS)
    for place, kind in enumerate(("k", "v"))
)


def place_of(kind: str, layer: int) -> int:
    """The number of a cache."""
    return next(place for place, cache in enumerate(CACHES) if (cache.kind, cache.layer) == (kind, layer))


def _turned(keys: Array, theta: float) -> Array:
    """Keys [T, H, D] turned by position x theta^(-2 i / D), fp64."""
    half = keys.shape[-1] // 2
    angles = np.arange(len(keys))[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin, first, second = np.cos(angles), np.sin(angles), keys[..., :half], keys[..., half:]
    out: Array = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return out


def _behind(embedded: Array, theta: float) -> list[Array]:
    """All caches behind a prompt: in layer 0 of each token alone, in later layers of all tokens up to its own."""
    seen = np.cumsum(embedded, 0)
    layers = [(_turned(embedded, theta), embedded), *((seen / layer, seen * layer) for layer in range(1, LAYERS))]
    return [rows[None].astype(np.float32) for pair in layers for rows in pair]


def sound_rows(theta: float) -> Asked:
    """The calls of the probe, answered."""
    rng = np.random.default_rng(0)
    tokens, others = rng.standard_normal((2, TOKENS, HEADS, WIDTH))
    prompts = {
        WHOLE: tokens,
        SPLIT: tokens * (1 + 1e-7),
        MOVED: np.concatenate([others[:1], tokens[:-1]]),
        REPEATED: np.repeat(tokens[:1], TOKENS, 0),
        UNPERTURBED: tokens[: sum(MASKED)],
    }
    for token in PERTURBED:
        prompts[f"perturbed {token}"] = tokens[: sum(MASKED)].copy()
        prompts[f"perturbed {token}"][token] = others[token]
    further = {
        (call, place): rows
        for call, embedded in enumerate(prompts.values())
        for place, rows in enumerate(_behind(embedded, theta))
    }
    return Asked(Result("ok", "", further=further), marks={name: call for call, name in enumerate(prompts)})


def with_rows(e: Evidence, change: Callable[[Asked], Asked]) -> Evidence:
    """Evidence whose rows were measured on sound ones, changed."""
    theta, cache = e.geometry.text.rope_theta, e.runtime.cache
    assert not isinstance(cache, Missing)
    rows = measure_rows(change(sound_rows(theta)), CACHES, rope_theta=theta)
    return replace(e, runtime=replace(e.runtime, cache=replace(cache, caches=CACHES, rows=rows)))


def row_changed(mark: str, place: int, change: Callable[[Any], object]) -> Callable[[Asked], Asked]:
    """A cache behind a call, changed in place."""

    def changed(asked: Asked) -> Asked:
        key = (asked.marks[mark], place)
        array = asked.result.further[key].copy()
        change(array)
        return replace(asked, result=replace(asked.result, further=asked.result.further | {key: array}))

    return changed
