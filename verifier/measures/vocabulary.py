"""The program's embedding of every token id against the checkpoint's table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verifier.artifact.program import Artifact
from verifier.audit.compare import stored_contents
from verifier.audit.recipe import quantized_embedding
from verifier.audit.run import Audit
from verifier.core.compare import Array, Mismatch, compare
from verifier.core.limits import limit
from verifier.core.types import Missing, Scheme, Where
from verifier.families.conventions import EMBEDDING
from verifier.interpret.machine import constant_tensor
from verifier.measures.against_fp32 import VocabularyError

STEPS, CLIPPED = limit("embedding.tokens"), limit("embedding.tokens.hqq")
ROWS_AT_ONCE = 1024


def in_steps(error: Array, table: Array, scheme: Scheme) -> Array:
    """An error of a table [V, D] in steps, which come from the largest magnitude of each group."""
    groups = table.reshape(len(table), -1, scheme.group_size or table.shape[1])
    step = np.maximum(np.abs(groups).max(-1, keepdims=True) / (2 ** (scheme.bits - 1) - 0.5), 1e-12)
    out: Array = (error.reshape(groups.shape) / step).reshape(table.shape)
    return out


def _own_error(table: Array, scheme: Scheme) -> Array:
    """How far the scheme's own rounding of a table [V, D] is from it, element by element."""
    made = quantized_embedding(torch.from_numpy(table), scheme)
    columns = table.shape[1] // made.scales.shape[1]
    real = made.integers.to(torch.float32) * made.scales.to(torch.float32).repeat_interleave(columns, 1)
    out: Array = np.abs(real.numpy() - table)
    return out


def own_table(artifact: Artifact, audit: Audit) -> Array | None:
    """The table [V, D] as the file's integers and scales have it, fp32, if no known quantizer made them and the audit found them right; else None:
    then the scheme says what is expected."""
    for constant, record in zip(audit.inventory, audit.constants, strict=True):
        if constant.role == "embedding" and constant.scales is not None and record.noted:
            integers = stored_contents(constant, artifact.storage, audit.source).to(torch.float32)
            scales = constant_tensor(constant.scales, artifact.storage).reshape(len(integers), -1)
            made: Array = (integers * scales.repeat_interleave(integers.shape[1] // scales.shape[1], 1)).numpy()
            return made
    return None


def _steps(actual: Array, expected: Array, scheme: Scheme, own: Array | None) -> tuple[Array, Array]:
    """How far rows [R, D] are off in steps (of fp32, absolutely), and what of that is allowed, [R, D]; `own` are the rows of the file."""
    difference = np.abs(actual - expected)
    if scheme.bits == 32:
        return difference, np.zeros_like(difference)
    steps = in_steps(difference, expected, scheme)
    if own is not None:
        return steps, in_steps(np.abs(own - expected), expected, scheme) + CLIPPED.value
    if scheme.quantizer == "hqq":
        return steps, in_steps(_own_error(expected, scheme), expected, scheme) + CLIPPED.value
    return steps, np.full(steps.shape, STEPS.value)


@dataclass(frozen=True)
class _Part:
    """Of some rows: how many are off, and the element that exceeds what is allowed by most, or comes closest to it."""

    off: int
    index: tuple[int, int]
    value: float
    allowed: float


def _part(actual: Array, expected: Array, first: int, scheme: Scheme, own: Array | None) -> _Part:
    """`ROWS_AT_ONCE` rows of two tables [V, D], from token `first` on."""
    rows = slice(first, first + ROWS_AT_ONCE)
    steps, allowed = _steps(actual[rows], expected[rows], scheme, None if own is None else own[rows])
    row, column = divmod(int((steps - allowed).argmax()), steps.shape[1])
    off = int((~(steps <= allowed)).any(1).sum())
    return _Part(off, (first + row, column), float(steps[row, column]), float(allowed[row, column]))


def measure_vocabulary(
    actual: Array | None, expected: Array, scheme: Scheme, message: str, own: Array | None = None
) -> VocabularyError | Missing:
    """The program's table [V, D] against the checkpoint's, quantized by a scheme, or with integers of its `own` (`own_table`); None, and the runtime's `message`, if a call did not
    return."""
    if actual is None:
        return Missing(f"{EMBEDDING} did not return: {message}", "program", Where(method=EMBEDDING), accuses="calls")
    made = compare(actual=actual, expected=expected)
    if isinstance(made, Mismatch):
        return Missing(f"embeddings: {made.reason}", "program", Where(EMBEDDING, index=made.index))
    parts = [_part(actual, expected, first, scheme, own) for first in range(0, len(expected), ROWS_AT_ONCE)]
    worst = max(parts, key=lambda part: part.value - part.allowed)
    off = sum(part.off for part in parts)
    return VocabularyError(len(expected), scheme.bits, made.sqnr_db, off, worst.value, worst.allowed, worst.index)
