"""What an app does to a picture before `vision_encoder` gets it: the record of one app, and the call that all of them are asked by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verifier.core.errors import ImageError
from verifier.families.pixels.apps.scaling import Pixels
from verifier.families.pixels.image_file import check_size
from verifier.families.pixels.processor import ImageFields

Size = tuple[int, int]
"""Width and height in px."""


@dataclass(frozen=True)
class Frame:
    """The square of the model, `side_px`, and what the checkpoint's processor file says, None without one."""

    side_px: int
    fields: ImageFields | None = None


@dataclass(frozen=True)
class App:
    """The picture path of one app.

    `read` decodes a file to uint8 [h, w, 3], or [h, w, 4] with alpha, as the app does: most know no orientation tag. `fit` makes of that what is fed,
    uint8 [h, w, 3]. `size` is the size that a picture of some width and height gets in a square of so many pixels. `usual` are sizes that
    the app feeds for usual shapes of pictures. `source` says where the code is.
    """

    name: str
    title: str
    source: str
    read: Callable[[Path], Pixels]
    fit: Callable[[Pixels, Frame], Pixels]
    size: Callable[[int, int, int], Size]
    usual: Callable[[int], tuple[Size, ...]]

    def picture(self, given: Path | Pixels, frame: Frame) -> Pixels:
        """A file, or pixels uint8 [h, w, 3 or 4] -> uint8 [3, h, w] as the app feeds it. Raises `ImageError` for what it cannot feed."""
        pixels = self.read(given) if isinstance(given, Path) else given
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
            got = f"{pixels.dtype} {list(pixels.shape)}"
            raise ImageError("these are no pixels", got=got, expected="uint8 [h, w, 3] or [h, w, 4]", where=self.name)
        check_size(pixels.shape[1], pixels.shape[0], "image")
        return np.ascontiguousarray(self.fit(pixels, frame).transpose(2, 0, 1))
