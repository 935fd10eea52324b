"""From an image to the `vision_encoder`'s input, without torchvision.

LLaVA-1.5 pads an image to a square and resizes it to 336 px with a bicubic filter. ExecuTorch's program pads inside
(`VisionEncoder.normalize`), so the host only resizes: the longer side becomes 336 px, both sides end even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verifier.families.llava.geometry import CLIP_MEAN, CLIP_STD
from verifier.families.pixels.image_file import check_size, to_rgb


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
    rgb = to_rgb(image)
    check_size(rgb.width, rgb.height, "image")
    width, height = frame_size(rgb.width, rgb.height, side_px=side_px)
    resized = rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BICUBIC)
    if square:
        frame = Image.new("RGB", (side_px, side_px))
        frame.paste(resized, ((side_px - width) // 2, (side_px - height) // 2))
        resized = frame
    return to_tensor(resized)


@dataclass(frozen=True)
class LlavaPixels:
    """Pictures of LLaVA-1.5 in a frame of `side_px`."""

    side_px: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def prepare(self, image: Image.Image, *, square: bool = False) -> Tensor:
        """A picture as the program takes it, uint8 [3, h, w]. Raises `ImageError`."""
        return prepare_image(image, side_px=self.side_px, square=square)
