"""Which pictures are measured besides the golden ones, and records of what was measured: pixels in their frame, and files as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from verifier.core.limits import limit
from verifier.core.types import Missing
from verifier.families.pixels.processor import Processor

DRAWN = (
    (336, 336, "RGB"),
    (335, 335, "RGBA"),
    (37, 37, "P"),
    (1024, 1024, "RGB"),
    (3000, 3000, "L"),
    (640, 480, "RGB"),
    (480, 640, "L"),
    (97, 131, "RGB"),
    (337, 251, "LA"),
    (1024, 576, "RGB"),
    (1001, 333, "P"),
    (333, 1001, "RGB"),
    (50, 20, "RGBA"),
    (1200, 60, "RGB"),
    (60, 2400, "RGB"),
    (2016, 12, "RGB"),
    (2, 300, "RGB"),
)
"""Width, height and Pillow's mode: squares and others, grown, shrunk and far shrunk, down to 2 px behind the resizing. Only the first one is
not resized."""
_MODES = {"RGB": "", "RGBA": " with alpha", "P": " palette", "L": " grey", "LA": " grey with alpha"}
DRAWN_CASES = tuple(f"{width} x {height}{_MODES[mode]}" for width, height, mode in DRAWN)
FILE_CASES = (
    *(f"JPEG, orientation {tag}" for tag in range(1, 9)),
    *(f"PNG, orientation {tag}" for tag in (2, 5, 6)),
    "PNG, orientation 6 in XMP",
    *(f"WebP, orientation {tag}" for tag in (3, 6)),
    *(f"TIFF, orientation {tag}" for tag in (4, 8)),
    "PNG, palette with transparency",
    "PNG, colour with alpha",
    "PNG, grey with alpha",
    "PNG, one bit",
    "TIFF, CMYK",
    "PPM, grey",
    "BMP",
    "GIF, animated",
)
LOSSY = ("JPEG",)
Size = tuple[int, int]
"""Width and height in px."""


@dataclass(frozen=True)
class FramedPixels:
    """A picture behind the encoder's normalization, against a reference of the same size.

    `picture` is the size of the picture, `size` that of what the program is given, and `possible` those that the picture may have in its frame.
    `worst_steps` is the largest difference inside the picture, in steps of 255, at `index` (channel, row, column); NaN if `size` cannot be compared.
    `margin_off` is the largest difference from black of a normalized pixel outside the picture, 0 if there is none; `margin_index` (row, column) is
    the first that is beyond the limit, if one is.
    """

    picture: Size
    size: Size
    possible: tuple[Size, ...]
    worst_steps: float = float("nan")
    index: tuple[int, int, int] = (0, 0, 0)
    margin_off: float = float("nan")
    margin_index: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class DifferingPixels:
    """How many pixels differ from a `reference` of some `size`: all of the larger picture if the sizes do."""

    reference: str
    size: Size
    pixels: int


@dataclass(frozen=True)
class PictureRead:
    """A file as it is read: its `size`, and how it differs from each reference; or the `refusal` of the reader, in one line."""

    size: Size = (0, 0)
    differing: tuple[DifferingPixels, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class PictureEvidence:
    """What the checkpoint's `processor` files say, and the `mean` and `std` that are built into the program, of red, green and blue. Pixels of the `golden` pictures by name, of the `user`'s own, and of those that are `drawn`, by case; small `files` as they are read, by case."""

    processor: Processor | Missing
    golden: dict[str, FramedPixels | Missing]
    user: FramedPixels | Missing
    drawn: dict[str, FramedPixels | Missing]
    files: dict[str, PictureRead]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def frame_sizes(width: int, height: int, side_px: int) -> tuple[Size, ...]:
    """The sizes that a picture may have in its frame: the longer side the frame's, the other even, at least 2, and as near to the ratio as an even
    number is. Two of them halfway between."""
    exact = Fraction(side_px * min(width, height), max(width, height))
    near = [even for even in range(2, side_px + 1, 2) if limit("preprocess.frame").admits(float(abs(even - exact)))]
    near = near or [2 if exact < 2 else side_px]
    return tuple((side_px, short) if width >= height else (short, side_px) for short in near)
