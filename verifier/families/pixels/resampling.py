"""Resizing by the definition of a filter: what `PIL.Image.resize` has to compute, written again without Pillow.

Two passes, one along the rows and one along the columns, each rounded to whole values, with weights in 22-bit fixed point (Pillow's
`libImaging/Resample.c`). Which pass comes first depends on Pillow's version and on the shape: both orders are right. It is the
reference of resized pixels: what a runner or a library makes of a picture is compared with this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]
Weighing = Callable[[Array], Array]
NEAREST = 0
FILTERS = {NEAREST: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""The values of `resample` in a processor's file."""
_FRACTION = 1 << 22


def resample(pixels: Pixels, width: int, height: int, kind: int, *, rows_first: bool = True) -> Pixels:
    """uint8 [H, W, C] -> uint8 [height, width, C] with the filter `kind` of `FILTERS`."""
    if kind == NEAREST:
        rows, columns = (_nearest(n, m) for n, m in zip(pixels.shape[:2], (height, width), strict=True))
        return pixels[rows][:, columns]
    if not rows_first:
        return resample(pixels.transpose(1, 0, 2), height, width, kind).transpose(1, 0, 2)
    if pixels.shape[1] != width:
        pixels = _along_columns(pixels.transpose(1, 0, 2), width, kind).transpose(1, 0, 2)
    return pixels if pixels.shape[0] == height else _along_columns(pixels, height, kind)


def _nearest(length: int, wanted: int) -> NDArray[np.int64]:
    """The pixels that are taken; positions are added up one by one, as Pillow does."""
    scale = length / wanted
    return np.add.accumulate(np.concatenate([[scale / 2], np.full(wanted - 1, scale)])).astype(np.int64)


def _along_columns(pixels: Pixels, wanted: int, kind: int) -> Pixels:
    """[N, A, C] -> [wanted, A, C]. Sums of integers below 2^53: exact in float64."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    summed = _weights(len(pixels), wanted, kind) @ flat
    rounded: Pixels = np.clip(np.floor(summed / _FRACTION + 0.5), 0, 255).astype(np.uint8)
    return rounded.reshape(wanted, *pixels.shape[1:])


def _weights(length: int, wanted: int, kind: int) -> Any:
    """The weight of each of `length` pixels in each of `wanted`, in 1 / 2^22: a sparse matrix [wanted, length]."""
    weigh, reach = _WEIGHINGS[kind]
    scale = length / wanted
    stretch = max(scale, 1.0)  # a filter that shrinks covers as many pixels as it replaces
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach * stretch + 0.5).astype(np.int64), length)
    covered = first[:, None] + np.arange(int((last - first).max()))
    inside = covered < last[:, None]
    weights = np.where(inside, weigh((covered - center[:, None] + 0.5) / stretch), 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True) * _FRACTION
    whole = np.trunc(weights + np.copysign(0.5, weights))
    ends = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    from scipy import sparse  # a fifth of a second, which few need

    return sparse.csr_matrix((whole[inside], covered[inside], ends), shape=(wanted, length))


def _bilinear(x: Array) -> Array:
    return 1 - np.abs(x).clip(max=1)


def _bicubic(x: Array) -> Array:
    """Keys 1981, a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Array) -> Array:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _box(x: Array) -> Array:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _hamming(x: Array) -> Array:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


_WEIGHINGS: dict[int, tuple[Weighing, float]] = {
    1: (_lanczos, 3.0),
    2: (_bilinear, 1.0),
    3: (_bicubic, 2.0),
    4: (_box, 0.5),
    5: (_hamming, 1.0),
}
"""The filter as a function of the distance in pixels, and how far it reaches."""
