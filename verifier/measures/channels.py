"""Faults of one channel, found below the noise: a scale, a sign or a bias is the same in every row, quantization noise is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.core.compare import Array, ChannelFit, Difference, Mismatch, compare, compare_all
from verifier.core.limits import limit
from verifier.core.types import Missing
from verifier.families.samples import Answered

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


@dataclass(frozen=True)
class ChannelError:
    """The `channel` of the decoder's last hidden state whose `gain`, against fp32's, is farthest from 1, by `gain_change`."""

    channel: int
    gain: float
    gain_change: float


def measure_channels(
    logits: Sequence[Array | None], answers: Sequence[Answered], head: Array
) -> ChannelError | Missing:
    """Gain of every channel of the final hidden state [N, D], recovered from the logits [T, V] of some answers by the output head's weight [V, D]."""
    made = compare_all((actual, answer.logits) for actual, answer in zip(logits, answers, strict=True))
    if isinstance(made, Mismatch):
        return _without_logits(made)
    hidden = np.concatenate([answer.hidden for answer in answers if answer.hidden is not None])
    recovered = compare(actual=recover_hidden(made.actual, head), expected=hidden)
    if isinstance(recovered, Mismatch):
        return _without_logits(recovered)
    worst = worst_channel(recovered)
    return ChannelError(worst.gain_channel, float(worst.fit.gain[worst.gain_channel]), worst.gain_change)


def _without_logits(mismatch: Mismatch) -> Missing:
    return Missing(f"not every golden answer has logits ({mismatch.reason}); see logits.teacher_forced", "verifier")


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
    from scipy import linalg  # a third of a second, which few need

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
