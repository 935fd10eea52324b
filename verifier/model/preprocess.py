"""From an image file to the `vision_encoder`'s input, without torchvision.

LLaVA-1.5 pads an image to a square and resizes it to 336 px with a bicubic filter. ExecuTorch's program pads inside
(`VisionEncoder.normalize`), so the host only resizes: the longer side becomes 336 px, both sides end even.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from verifier.errors import ImageError

MAX_PIXELS = 64 << 20
MAX_ASPECT = 168.0
"""The shorter side must keep at least two of 336 pixels."""


def read_image(path: Path) -> Image.Image:
    """An RGB image from a file. Raises `ImageError` for what is missing, not an image, too large, or too narrow."""
    fix = "give a PNG or JPEG of ordinary proportions"
    if not path.is_file():
        raise ImageError("no such image", got=path, expected="an image file", fix=fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                check_size(file.width, file.height, path)
                return file.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ImageError("the image cannot be read", got=error, where=path, fix=fix) from error


def check_size(width: int, height: int, where: object) -> None:
    """Raise `ImageError` unless an image of this size can become a 336 px square."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            "the image is too large",
            got=f"{width} x {height}",
            expected=f"<= {MAX_PIXELS} pixels",
            where=where,
            fix="scale it down",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            "the image is too narrow",
            got=f"{width} x {height}",
            expected=f"an aspect ratio of at most {MAX_ASPECT:g}",
            where=where,
            fix="crop it: after scaling to 336 px its short side would vanish",
        )


def frame_size(width: int, height: int, *, side_px: int = 336) -> tuple[int, int]:
    """(width, height) after resizing: the longer side is `side_px`, the other keeps the ratio, rounded to even, >= 2."""
    scale = side_px / max(width, height)

    def even(length: int) -> int:
        return min(side_px, max(2, 2 * round(length * scale / 2)))

    return even(width), even(height)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, h, w]."""
    return torch.from_numpy(np.asarray(image, np.uint8).copy()).permute(2, 0, 1).contiguous()


def prepare_image(image: Image.Image, *, side_px: int = 336, square: bool = False) -> Tensor:
    """Resize with a bicubic filter (antialiased, as PIL's) -> uint8 [3, h, w], h and w even and at most `side_px`.

    `square` pads with black to [3, side, side] for a program of static image shape. Raises `ImageError`.
    """
    rgb = image.convert("RGB")
    check_size(rgb.width, rgb.height, "image")
    width, height = frame_size(rgb.width, rgb.height, side_px=side_px)
    resized = rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BICUBIC)
    if square:
        frame = Image.new("RGB", (side_px, side_px))
        frame.paste(resized, ((side_px - width) // 2, (side_px - height) // 2))
        resized = frame
    return to_tensor(resized)
