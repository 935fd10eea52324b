"""Textured pictures, drawn to be measured, and small files of every kind that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture whose every row and column differs from its neighbours, in the file's pixels and in those of the frame: what any other
    filter, a shift, an exchange of channels or of axes would change."""
    rng = np.random.default_rng((width, height))
    bands = len(mode) if mode != "P" else 1
    block = max(1, round(3 * max(width, height) / 336))

    def along(length: int, step: int) -> Any:
        return np.repeat(rng.integers(0, 256, (-(-length // step), bands), dtype=np.uint8), step, axis=0)[:length]

    fine, coarse = ((along(height, step)[:, None] ^ along(width, step)[None]) for step in (1, block))
    pixels = fine // 3 + coarse // 3 * 2
    image = Image.fromarray(pixels if bands > 1 else pixels[..., 0], "L" if mode == "P" else mode)
    if mode == "P":
        image = _with_palette(image, rng)
    return image


def _with_palette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same pixels as indices into a random palette with a random opacity."""
    made = Image.frombytes("P", image.size, image.tobytes())
    made.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    made.info["transparency"] = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
    return made


TURNS = {
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}
"""How a picture is stored that an orientation tag of this value turns upright."""
ORIENTATION = 0x0112


def save_turned(upright: Image.Image, tag: int, path: Path, **options: Any) -> None:
    """Store a picture turned, with the tag that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    carried = {"tiffinfo": {ORIENTATION: tag}} if path.suffix == ".tiff" else {"exif": exif}
    TURNS[tag](upright).save(path, **carried, **options)


def _tagged(tag: int, suffix: str, **options: Any) -> Callable[[Path], Image.Image]:
    def save(path: Path) -> Image.Image:
        upright = drawn(48, 32)
        save_turned(upright, tag, path.with_suffix(suffix), **options)
        return upright

    return save


def _plain(mode: str, suffix: str, **options: Any) -> Callable[[Path], Image.Image]:
    def save(path: Path) -> Image.Image:
        image = drawn(48, 32).convert(mode) if mode in ("1", "CMYK") else drawn(48, 32, mode)
        image.save(path.with_suffix(suffix), **options)
        return image.convert("RGB")

    return save


def _animated(path: Path) -> Image.Image:
    frames = [drawn(48, 32, "P"), drawn(32, 48, "P").resize((48, 32))]
    for frame in frames:
        del frame.info["transparency"]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    return frames[0].convert("RGB")


def _xmp(path: Path) -> Image.Image:
    upright, info = drawn(48, 32), PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>')
    TURNS[6](upright).save(path.with_suffix(".png"), pnginfo=info)
    return upright


FILES: dict[str, Callable[[Path], Image.Image]] = {
    **{f"JPEG, orientation {tag}": _tagged(tag, ".jpg", quality=95) for tag in TURNS},
    **{f"PNG, orientation {tag}": _tagged(tag, ".png") for tag in (2, 5, 6)},
    "PNG, orientation 6 in XMP": _xmp,
    **{f"WebP, orientation {tag}": _tagged(tag, ".webp", lossless=True) for tag in (3, 6)},
    **{f"TIFF, orientation {tag}": _tagged(tag, ".tiff") for tag in (4, 8)},
    "PNG, palette with transparency": _plain("P", ".png"),
    "PNG, colour with alpha": _plain("RGBA", ".png"),
    "PNG, grey with alpha": _plain("LA", ".png"),
    "PNG, one bit": _plain("1", ".png"),
    "TIFF, CMYK": _plain("CMYK", ".tiff"),
    "PPM, grey": _plain("L", ".pgm"),
    "BMP": _plain("RGB", ".bmp"),
    "GIF, animated": _animated,
}
"""Writes a small file beside the given path, with a suffix of its own, and gives the upright RGB picture that it shows."""
