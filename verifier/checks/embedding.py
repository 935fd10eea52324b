"""`embedding.*`: the token embedding over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verifier.audit.recipe import quantized_embedding
from verifier.checks.check import Fields, Finding, check, failed, need, one_case, passed
from verifier.core.compare import Array, Mismatch, compare
from verifier.core.limits import limit
from verifier.evidence import Evidence, Part
from verifier.families.conventions import EMBEDDING
from verifier.types import EMBEDDING_GROUP, Recipe, Where

STEPS, CLIPPED = limit("embedding.tokens"), limit("embedding.tokens.hqq")
ROWS_AT_ONCE = 1024


def _in_steps(error: Array, table: Array, bits: int) -> Array:
    """An error of a table [V, D] in steps, which come from the largest magnitude of each group."""
    groups = table.reshape(len(table), -1, EMBEDDING_GROUP)
    step = np.maximum(np.abs(groups).max(-1, keepdims=True) / (2 ** (bits - 1) - 0.5), 1e-12)
    out: Array = (error.reshape(groups.shape) / step).reshape(table.shape)
    return out


def _own_error(table: Array, recipe: Recipe) -> Array:
    """How far the recipe's own rounding of a table [V, D] is from it, element by element."""
    made = quantized_embedding(torch.from_numpy(table), recipe)
    real = made.integers.to(torch.float32) * made.scales.to(torch.float32).repeat_interleave(EMBEDDING_GROUP, 1)
    out: Array = np.abs(real.numpy() - table)
    return out


def _steps(actual: Array, expected: Array, bits: int, recipe: Recipe | None) -> tuple[Array, Array]:
    """How far rows [R, D] are off in steps (of fp32, absolutely), and what of that is allowed, [R, D]."""
    difference = np.abs(actual - expected)
    if bits == 32:
        return difference, np.zeros_like(difference)
    steps = _in_steps(difference, expected, bits)
    if recipe and recipe.quantizer == "hqq":
        return steps, _in_steps(_own_error(expected, recipe), expected, bits) + CLIPPED.value
    return steps, np.full(steps.shape, STEPS.value)


@dataclass(frozen=True)
class _Part:
    """Of some rows: how many are off, and the element that exceeds what is allowed by most, or comes closest to it."""

    off: int
    index: tuple[int, int]
    value: float
    allowed: float


def _part(actual: Array, expected: Array, first: int, bits: int, recipe: Recipe | None) -> _Part:
    """`ROWS_AT_ONCE` rows of two tables [V, D], from token `first` on."""
    rows = slice(first, first + ROWS_AT_ONCE)
    steps, allowed = _steps(actual[rows], expected[rows], bits, recipe)
    row, column = divmod(int((steps - allowed).argmax()), steps.shape[1])
    off = int((~(steps <= allowed)).any(1).sum())
    return _Part(off, (first + row, column), float(steps[row, column]), float(allowed[row, column]))


@need(Part.CONVERSATIONS, computed=True)
def answered(evidence: Evidence) -> Evidence:
    """The runtime's table of all tokens among the rest."""
    return evidence


@check(
    "embedding.tokens",
    step="quantization",
    needs=answered,
    cases=one_case,
    limit=("embedding.tokens", "embedding.tokens.hqq"),
)
def tokens(evidence: Evidence, _case: str) -> Finding:
    """The embedding of every token id lies within half a quantization step of the checkpoint's, or as near to it as HQQ's own rounding leaves it."""
    actual = evidence.runtime.vocabulary
    expected = evidence.definition.embedding.numpy()
    where = Where(method=EMBEDDING)
    if actual is None:
        return failed(
            f"{EMBEDDING} did not return: {evidence.runtime.message}",
            where=where,
            accuses="calls",
        )
    made = compare(actual=actual, expected=expected)
    if isinstance(made, Mismatch):
        return failed(f"embeddings: {made.reason}", where=Where(EMBEDDING, index=made.index))
    recipe = evidence.manifest.recipe if evidence.manifest else None
    bits = recipe.embedding_bits if recipe else 8
    unit = "absolute" if bits == 32 else "steps"
    parts = [_part(actual, expected, first, bits, recipe) for first in range(0, len(expected), ROWS_AT_ONCE)]
    worst = max(parts, key=lambda part: part.value - part.allowed)
    (row, column), value, steps_allowed = worst.index, worst.value, worst.allowed
    quality = made.sqnr_db
    fields: Fields = {"measured": {"worst_steps": value, "sqnr_db": quality}, "allowed": {"worst_steps": steps_allowed}}
    where = Where(method=EMBEDDING, index=(row, column))
    if not STEPS.of(steps_allowed).admits(value):
        return failed(
            f"{sum(part.off for part in parts)} of {len(expected)} token embeddings are off; worst is token {row}, column {column}: {value:.2f} {unit}, allowed {steps_allowed:.2f}. "
            "Check that these embedding weights and scales are this checkpoint's.",
            fields,
            where=where,
        )
    return passed(f"{len(expected)} tokens, worst {value:.3f} {unit}, {quality:.1f} dB", fields, where=where)


CHECKS = (tokens,)
