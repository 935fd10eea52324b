"""Resizing as the libraries of the apps do it: separable filters in floating point, and where a library has them, its own rules for the weights.

`stb_image_resize.h` 0.97 (stbir_resize_uint8 with its defaults, deprecated/ of github.com/nothings/stb at f0569113) enlarges with Catmull-Rom's
cubic and shrinks with Mitchell's, edges are clamped, and a picture that keeps its size counts as shrunk: it is blurred a little. Skia's linear
sampling (`SkFilterMode::kLinear` without mipmaps, of `Bitmap.createScaledBitmap(…, true)`) mixes the four nearest pixels, however much it shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]
Kernel = Callable[[Array], Array]


def resize_as_stb(pixels: Pixels, width: int, height: int) -> Pixels:
    """uint8 [H, W, C] -> uint8 [height, width, C] as `stbir_resize_uint8` with its default filters."""

    def weights(length: int, wanted: int) -> Any:
        kernel = catmull_rom if wanted > length else mitchell
        return axis_weights(length, wanted, kernel, 2.0, scale=wanted / length)

    return to_bytes(_apply(pixels, weights(pixels.shape[0], height), weights(pixels.shape[1], width)))


def resize_as_skia(pixels: Pixels, width: int, height: int) -> Pixels:
    """uint8 [H, W, C] -> uint8 [height, width, C] as Skia draws a scaled bitmap with a bilinear filter."""

    def weights(length: int, wanted: int) -> Any:
        return axis_weights(length, wanted, triangle, 1.0, scale=wanted / length, smooth=False)

    return to_bytes(_apply(pixels, weights(pixels.shape[0], height), weights(pixels.shape[1], width)))


def draw_into_square(pixels: Pixels, side_px: int) -> Pixels:
    """uint8 [H, W, C] -> uint8 [side, side, C]: scaled until the shorter side fills the square, centred, what stands over is cut off.

    A triangle filter that is widened where it shrinks; the origin of the picture may lie between two pixels, as in the drawing calls of the app.
    """
    scale = side_px / min(pixels.shape[:2])

    def weights(length: int) -> Any:
        origin = (side_px - length * scale) / 2
        return axis_weights(length, side_px, triangle, 1.0, scale=scale, origin=origin)

    return to_bytes(_apply(pixels, weights(pixels.shape[0]), weights(pixels.shape[1])))


def axis_weights(
    length: int, wanted: int, kernel: Kernel, reach: float, *, scale: float, origin: float = 0.0, smooth: bool = True
) -> Any:
    """The weight of each of `length` pixels in each of `wanted`: a sparse matrix [wanted, length] whose rows sum to 1.

    Pixel i of the source begins at `origin` + i * `scale`. `smooth` widens the kernel where it shrinks. Pixels beyond the edge are the last one.
    """
    stretch = max(1 / scale, 1.0) if smooth else 1.0
    center = (np.arange(wanted) + 0.5 - origin) / scale
    first = np.floor(center - reach * stretch).astype(np.int64)
    covered = first[:, None] + np.arange(int(np.ceil(2 * reach * stretch)) + 2)
    weights = kernel((covered + 0.5 - center[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(wanted), covered.shape[1])
    columns = np.clip(covered, 0, length - 1).reshape(-1)
    from scipy import sparse  # a fifth of a second, which few need

    return sparse.csr_matrix((weights.reshape(-1), (rows, columns)), shape=(wanted, length))


def to_bytes(values: Array) -> Pixels:
    """Rounded half up, and kept from 0 to 255."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _apply(pixels: Pixels, rows: Any, columns: Any) -> Array:
    """Rows first, then columns: in floating point, so that the order is of no matter."""
    channels = pixels.shape[2]
    tall = (rows @ pixels.reshape(pixels.shape[0], -1).astype(np.float64)).reshape(rows.shape[0], -1, channels)
    across = tall.transpose(1, 0, 2).reshape(tall.shape[1], -1)
    made: Array = (columns @ across).reshape(columns.shape[0], -1, channels).transpose(1, 0, 2)
    return made


def triangle(x: Array) -> Array:
    """Linear interpolation."""
    return 1 - np.abs(x).clip(max=1)


def catmull_rom(x: Array) -> Array:
    """Catmull & Rom 1974: a cubic through the pixels."""
    x = np.abs(x)
    near, far = 1 - x * x * (2.5 - 1.5 * x), 2 - x * (4 + x * (0.5 * x - 2.5))
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def mitchell(x: Array) -> Array:
    """Mitchell & Netravali 1988, B = C = 1/3: a cubic that blurs a little, at every pixel (1, 16, 1) / 18."""
    x = np.abs(x)
    near, far = (16 + x * x * (21 * x - 36)) / 18, (32 + x * (-60 + x * (36 - 7 * x))) / 18
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
