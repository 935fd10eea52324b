"""Numbers that compare two arrays. Shape, dtype and non-finite values are refused before any metric is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.floating]


EQUAL_DB = 400.0
"""SQNR of equal arrays, and the largest there is."""
AT_ONCE = 1 << 22
"""Elements that become fp64 at a time: an embedding table of 7B has 131 million."""


@dataclass(frozen=True)
class Mismatch:
    """Why two arrays cannot be compared at all; `index` is the first non-finite element."""

    reason: str
    index: tuple[int, ...] | None = None


def comparable(*, actual: Array, expected: Array) -> Mismatch | None:
    """None if both are finite floating-point arrays of one shape."""
    if actual.shape != expected.shape:
        return Mismatch(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.dtype.kind != "f" or expected.dtype.kind != "f":
        return Mismatch(f"dtype {actual.dtype}, expected {expected.dtype}")
    if actual.size == 0:
        return Mismatch("nothing to compare: the arrays are empty")
    for name, array in (("actual", actual), ("expected", expected)):
        bad = ~np.isfinite(array)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            return Mismatch(f"{int(bad.sum())} non-finite values in {name}, the first at {list(index)}", index)
    return None


def sqnr_db(*, actual: Array, expected: Array) -> float:
    """Signal to noise in dB: 10 log10(sum expected^2 / sum (actual - expected)^2); capped at `EQUAL_DB` for equal arrays."""
    signal = noise = 0.0
    flat = [x.reshape(-1) for x in np.broadcast_arrays(actual, expected)]
    for first in range(0, flat[0].size, AT_ONCE):
        a, e = (x[first : first + AT_ONCE].astype(np.float64) for x in flat)
        signal += float(np.square(e).sum())
        noise += float(np.square(a - e).sum())
    return decibels(signal, noise)


def decibels(signal: float, noise: float) -> float:
    """Signal to noise of two sums of squares in dB, within `EQUAL_DB`."""
    if noise == 0.0:
        return EQUAL_DB
    return -EQUAL_DB if signal == 0.0 else float(np.clip(10 * np.log10(signal / noise), -EQUAL_DB, EQUAL_DB))


def row_sqnr_db(*, actual: Array, expected: Array) -> Array:
    """`sqnr_db` of every row of [..., D], flattened to [N]."""
    a, e = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (actual, expected))
    noise = np.maximum(np.square(a - e).sum(1), 1e-300)
    out: Array = np.clip(10 * np.log10(np.maximum(np.square(e).sum(1), 1e-300) / noise), -400, 400)
    return out


def worst_index(*, actual: Array, expected: Array) -> tuple[int, ...]:
    """Where the absolute difference is largest."""
    flat = int(np.abs(actual.astype(np.float64) - expected).argmax())
    return tuple(int(i) for i in np.unravel_index(flat, actual.shape))


def kl_divergence(*, actual: Array, expected: Array) -> Array:
    """KL(expected || actual) in nats of the softmax distributions of each row of logits [N, V] -> [N]."""
    p, q = (special.log_softmax(x.astype(np.float64), axis=-1) for x in (expected, actual))
    out: Array = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return out


def top2_margin(logits: Array) -> Array:
    """Largest minus second largest logit of each row [N, V] -> [N]."""
    top = np.partition(logits, -2, axis=-1)
    out: Array = top[..., -1] - top[..., -2]
    return out


def agreement_interval(hits: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ChannelFit:
    """Per channel over N rows: actual = gain * expected + offset + noise, by least squares. All [D].

    Noise that is independent from row to row averages out, so a wrong scale, sign or bias of one channel shows far
    below the noise floor of the whole tensor. `gain_error` is the standard error of the gain.
    """

    gain: Array
    offset: Array
    gain_error: Array
    offset_error: Array


def fit_channels(*, actual: Array, expected: Array) -> ChannelFit:
    """Fit every channel of [..., D]. Channels that never vary get gain 1 and an infinite error."""
    a, e = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (actual, expected))
    rows = len(a)
    mean_a, mean_e = a.mean(0), e.mean(0)
    spread = np.square(e - mean_e).sum(0)
    varies = spread > 1e-12 * max(float(np.square(e).sum()) / e.shape[1], 1e-300)
    safe = np.where(varies, spread, 1.0)
    gain = np.where(varies, ((a - mean_a) * (e - mean_e)).sum(0) / safe, 1.0)
    offset = mean_a - gain * mean_e
    residual = np.square(a - gain * e - offset).sum(0) / max(rows - 2, 1)
    gain_error = np.where(varies, np.sqrt(residual / safe), np.inf)
    offset_error = np.sqrt(residual * (1 / rows + np.where(varies, mean_e**2 / safe, 0.0)))
    return ChannelFit(gain, offset, gain_error, offset_error)
