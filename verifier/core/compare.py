"""From two arrays to a number: `compare` is the only way.

Shape, dtype, emptiness and values that are not finite are refused before any metric, with the reason and the place. The metrics are members
of `Difference`, which `compare` alone makes: a number is never taken of arrays that cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from verifier.core.limits import limit

Array = NDArray[np.floating]

EQUAL_DB = limit("equal").value
"""SQNR of equal arrays, and the largest there is."""
AT_ONCE = 1 << 22
"""Elements that become fp64 at a time: an embedding table of 7B has 131 million."""
TINY = 1e-300
"""Keeps a quotient of fp64 sums of squares finite."""
VARIES = 1e-12
"""A channel whose sum of squares about its mean is below this share of the mean channel's power does not vary."""


@dataclass(frozen=True)
class Mismatch:
    """Why two arrays cannot be compared at all; `index` is the first element that is not finite. `both` is whether NaN stands at the very
    same places on both sides, so that neither can be held against the other."""

    reason: str
    index: tuple[int, ...] | None = None
    both: bool = False


@dataclass(frozen=True)
class ChannelFit:
    """Per channel over N rows: actual = gain * expected + offset + noise, by least squares. All [D].

    Noise that is independent from row to row averages out, so a wrong scale, sign or bias of one channel shows far
    below the noise floor of the whole tensor.
    """

    gain: Array
    offset: Array


@dataclass(frozen=True)
class Worst:
    """The largest error in the unit that was asked for, and where it is."""

    error: float
    index: tuple[int, ...]
    actual: float
    expected: float


@dataclass(frozen=True, eq=False)
class Difference:
    """Two arrays of one shape, all numbers finite, and what they differ by. Made by `compare` alone."""

    actual: Array = field(repr=False)
    expected: Array = field(repr=False)

    @cached_property
    def sqnr_db(self) -> float:
        """Signal to noise in dB: 10 log10(sum expected^2 / sum (actual - expected)^2), within `EQUAL_DB`."""
        signal = noise = 0.0
        actual, expected = self.actual.reshape(-1), self.expected.reshape(-1)
        for first in range(0, actual.size, AT_ONCE):
            a, e = (x[first : first + AT_ONCE].astype(np.float64) for x in (actual, expected))
            signal += float(np.square(e).sum())
            noise += float(np.square(a - e).sum())
        return decibels(signal, noise)

    @cached_property
    def row_sqnr_db(self) -> Array:
        """The SQNR of every row of [..., D], flattened to [N]."""
        a, e = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (self.actual, self.expected))
        noise = np.square(a - e).sum(1)
        ratio = np.maximum(np.square(e).sum(1), TINY) / np.maximum(noise, TINY)
        out: Array = np.where(noise == 0.0, EQUAL_DB, np.clip(10 * np.log10(ratio), -EQUAL_DB, EQUAL_DB))
        return out

    @cached_property
    def differing(self) -> int:
        """How many elements differ at all."""
        return int((self.actual != self.expected).sum())

    @property
    def share_off(self) -> float:
        """The share of elements that differ at all."""
        return self.differing / self.actual.size

    def count_over(self, error: float) -> int:
        """How many elements have a larger absolute error."""
        apart = np.abs(self.actual.astype(np.float64) - self.expected.astype(np.float64))
        return int((~(apart <= error)).sum())

    def worst(self, unit: float | Array = 1.0) -> Worst:
        """The element with the largest absolute error, in units: a number, or one for each element. No error is 0 of any unit."""
        a, e = self.actual.astype(np.float64), self.expected.astype(np.float64)
        distance = np.abs(a - e)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(distance == 0.0, 0.0, distance / unit)
        error = np.where(np.isnan(error), np.inf, error)
        flat = int(error.argmax())
        index = tuple(int(i) for i in np.unravel_index(flat, error.shape))
        return Worst(float(error.reshape(-1)[flat]), index, float(a.reshape(-1)[flat]), float(e.reshape(-1)[flat]))

    @cached_property
    def kl_nats(self) -> Array:
        """KL(expected || actual) in nats of the softmax distributions of each row of logits [N, V] -> [N]."""
        from scipy import special  # a third of a second, which few need

        p, q = (special.log_softmax(x.astype(np.float64), axis=-1) for x in (self.expected, self.actual))
        out: Array = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
        return out

    @cached_property
    def same_winners(self) -> int:
        """How many rows [N, V] have their largest element at the same place."""
        return int((self.actual.argmax(-1) == self.expected.argmax(-1)).sum())

    @cached_property
    def channels(self) -> ChannelFit:
        """A fit of every channel of [..., D]. Channels that never vary get gain 1."""
        a, e = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (self.actual, self.expected))
        mean_a, mean_e = a.mean(0), e.mean(0)
        spread = np.square(e - mean_e).sum(0)
        varies = spread > VARIES * max(float(np.square(e).sum()) / e.shape[1], TINY)
        safe = np.where(varies, spread, 1.0)
        gain = np.where(varies, ((a - mean_a) * (e - mean_e)).sum(0) / safe, 1.0)
        offset = mean_a - gain * mean_e
        return ChannelFit(gain, offset)


def decibels(signal: float, noise: float) -> float:
    """Signal to noise of two sums of squares in dB, within `EQUAL_DB`; NaN of sums that are not finite, which no limit admits."""
    if not (np.isfinite(signal) and np.isfinite(noise)):
        return float("nan")
    if noise == 0.0:
        return EQUAL_DB
    return -EQUAL_DB if signal == 0.0 else float(np.clip(10 * np.log10(signal / noise), -EQUAL_DB, EQUAL_DB))


def compare(*, actual: Array | None, expected: Array | None, masked: bool = False) -> Difference | Mismatch:
    """What two arrays differ by, or why they cannot be compared. Both are floating-point, or of one other dtype.

    `masked` admits infinities that stand at the same places with the same sign on both sides, as attention masks have them: such elements are
    equal, and count as zeros in every metric. NaN is never admitted.
    """
    for name, array in (("actual", actual), ("expected", expected)):
        if array is None:
            return Mismatch(f"nothing to compare: there is no {name} array")
    assert actual is not None and expected is not None
    if actual.shape != expected.shape:
        return Mismatch(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.dtype != expected.dtype and not (actual.dtype.kind == expected.dtype.kind == "f"):
        return Mismatch(f"dtype {actual.dtype}, expected {expected.dtype}")
    if actual.dtype.kind not in "fiub":
        return Mismatch(f"dtype {actual.dtype} is not one of numbers")
    if actual.size == 0:
        return Mismatch("nothing to compare: the arrays are empty")
    if actual.dtype.kind != "f":
        return Difference(actual, expected)
    bad = [~np.isfinite(array) for array in (actual, expected)]
    if not (bad[0].any() or bad[1].any()):
        return Difference(actual, expected)
    if masked and bool((actual == expected)[bad[0] | bad[1]].all()):
        return Difference(*(np.where(there, 0, array) for there, array in zip(bad, (actual, expected), strict=True)))
    return _not_finite(actual, expected, bad)


def compare_all(pairs: Iterable[tuple[Array | None, Array | None]]) -> Difference | Mismatch:
    """The rows of all pairs together; the reason of the first pair that cannot be compared."""
    made: list[Difference] = []
    for actual, expected in pairs:
        one = compare(actual=actual, expected=expected)
        if isinstance(one, Mismatch):
            return one
        made.append(one)
    if not made:
        return Mismatch("nothing to compare: there are no arrays")
    return compare(
        actual=np.concatenate([one.actual for one in made]), expected=np.concatenate([one.expected for one in made])
    )


def refusal(array: Array | None) -> Mismatch | None:
    """Why no number can be taken of one array: it is missing, empty, or holds what is not finite; None if there is no reason."""
    made = compare(actual=array, expected=array)
    if not isinstance(made, Mismatch):
        return None
    return Mismatch(made.reason.split("; ")[0].removesuffix(" in actual").replace(" in actual,", ","), made.index)


def _not_finite(actual: Array, expected: Array, bad: list[NDArray[np.bool_]]) -> Mismatch:
    """The first value that is not finite, on whichever side; where it stands on both, that is said."""
    at = first_index(bad[0] | bad[1])
    both = bool(np.array_equal(np.isnan(actual), np.isnan(expected)) and np.array_equal(bad[0], bad[1]))
    parts = [
        f"{count(int(there.sum()))} in {name}, the first at {list(first_index(there))} ({array[first_index(there)]:g})"
        for name, array, there in zip(("actual", "expected"), (actual, expected), bad, strict=True)
        if there.any()
    ]
    return Mismatch("; ".join(parts), at, both)


def first_index(places: NDArray[np.bool_]) -> tuple[int, ...]:
    """The first true element in the order of rows."""
    return tuple(int(i) for i in np.unravel_index(int(places.argmax()), places.shape))


def count(number: int) -> str:
    """How many values are not finite, in words."""
    return "1 non-finite value" if number == 1 else f"{number:,} non-finite values"


def top2_margin(logits: Array) -> Array:
    """Largest minus second largest logit of each row [N, V] -> [N]."""
    top = np.partition(logits, -2, axis=-1)
    out: Array = top[..., -1] - top[..., -2]
    return out


def agreement_interval(hits: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    from scipy import stats  # half a second, which few need

    interval = stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
