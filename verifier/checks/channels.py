"""Faults of one channel, found below the noise: a scale, a sign or a bias is the same in every row, quantization noise is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from verifier.core.compare import Array, ChannelFit, Difference
from verifier.core.limits import limit

ROWS_AT_ONCE = 2048
TINY = 1e-12
"""Keeps a quotient of a spread finite; a channel that does not vary is not judged."""


@dataclass(frozen=True)
class WorstChannel:
    """The channel that stands out most. `gain_change` is |gain - 1|; `offset_change` is in standard deviations of the output."""

    gain_change: float
    gain_channel: int
    offset_change: float
    offset_channel: int
    fit: ChannelFit


def worst_channel(made: Difference) -> WorstChannel:
    """Fit all channels of [N, D] and pick the worst gain and the worst offset among those that vary enough to tell."""
    fit, expected = made.channels, made.expected
    spread = expected.reshape(-1, expected.shape[-1]).astype(np.float64).std(0)
    telling = spread > limit("channels.telling").value * np.median(spread)
    gain = np.where(telling, np.abs(fit.gain - 1), 0.0)
    offset = np.where(telling, np.abs(fit.offset) / np.maximum(spread, TINY), 0.0)
    g, o = int(gain.argmax()), int(offset.argmax())
    return WorstChannel(float(gain[g]), g, float(offset[o]), o, fit)


def recover_hidden(logits: Array, head: Array) -> Array:
    """The head's input [N, D] from its output [N, V] by least squares (V > D): faults before the head show per channel.

    By the normal equations in fp64, some rows of the head at a time: all of a 7B's are 1 GB, and LAPACK takes twice that beside them.
    """
    width = head.shape[1]
    gram, right = np.zeros((width, width)), np.zeros((width, len(logits)))
    for first in range(0, len(head), ROWS_AT_ONCE):
        rows = head[first : first + ROWS_AT_ONCE].astype(np.float64)
        gram += rows.T @ rows
        right += rows.T @ logits[:, first : first + ROWS_AT_ONCE].T.astype(np.float64)
    out: Array = _solve(gram, right).T
    return out


def _solve(gram: Array, right: Array) -> Array:
    """x of gram x = right; the shortest, where the head does not tell channels apart."""
    try:
        factor = linalg.cho_factor(gram)
    except linalg.LinAlgError:
        pivots = np.zeros(1)
    else:
        pivots = np.diag(factor[0])
    if limit("logits.channels.pivot").admits(float(pivots.min() / max(pivots.max(), TINY))):
        out: Array = linalg.cho_solve(factor, right)
        return out
    solution, *_ = np.linalg.lstsq(gram, right, rcond=None)
    return solution
