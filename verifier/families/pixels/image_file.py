"""From a file to RGB pixels, as Hugging Face's own loader reads it (`transformers.image_utils.load_image`).

The orientation tag is applied, and whatever has another mode becomes RGB by Pillow's own conversion: the first frame of an animation,
the colours of a palette, the colour channels of a picture with alpha (the alpha is dropped, not blended). What that conversion
would make flat is refused: more than 8 bits in one channel, where Pillow clips every value above 255 to white.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from verifier.core.errors import ImageError
from verifier.core.files import refuse_stand_in

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")
"""The formats that are read, by Pillow's names: one list for every command. JPEG includes MPO. PNG, JPEG, WebP, AVIF and TIFF carry
an orientation tag."""
READABLE = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, PPM or JPEG 2000"
MAX_PIXELS = 64 << 20
MAX_ASPECT = 168.0
"""The shorter side must keep at least two of 336 pixels."""


def read_image(path: Path) -> Image.Image:
    """An upright RGB image from a file. Raises `ImageError` for what is missing, not one of `FORMATS`, damaged, too large, too narrow, or
    deeper than 8 bits a channel without a rule to scale it."""
    with _opened(path) as file:
        return to_rgb(upright(file), path)


def read_stored(path: Path) -> Image.Image:
    """The picture as the file stores it, for readers that know no orientation tag: its `format` and mode are the file's. Raises as `read_image`."""
    with _opened(path) as file:
        _check_depth(file, path)
        stored = file.copy()
        stored.format = file.format
        return stored


def check_image(path: Path) -> None:
    """Raise `ImageError` for a file whose header already shows that it cannot be read. The pixels are not decoded."""
    with _opened(path) as file:
        _check_depth(file, path)


def upright(image: Image.Image) -> Image.Image:
    """The image as its orientation tag (EXIF or XMP, values 1 to 8) says that it is to be seen."""
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, where: object = "image") -> Image.Image:
    """RGB by Pillow's own conversion, which is Hugging Face's. Raises `ImageError` where that would clip."""
    _check_depth(image, where)
    return image.convert("RGB")


def list_images(folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The images of a folder in name order, told by their content, and the names of everything else in it.

    Raises `ImageError` for one that is named like an image and cannot be read.
    """
    images, others = [], []
    for path in sorted(folder.iterdir()):
        if path.is_file() and (_is_named_like_one(path) or _begins_like_one(path)):
            check_image(path)
            images.append(path)
        else:
            others.append(path.name)
    return tuple(images), tuple(others)


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


def _check_depth(image: Image.Image, where: object) -> None:
    if image.mode.startswith("I") or image.mode == "F":
        raise ImageError(
            "the image has more than 8 bits a channel",
            got=f"Pillow's mode {image.mode}",
            expected="at most 8 bits a channel: transformers clips larger values to white and does not scale them",
            where=where,
            fix="scale it to 8 bits a channel yourself, and give that file",
        )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A file of one of `FORMATS`, its header read and its size accepted. Whatever goes wrong inside is an `ImageError`."""
    fix = f"give a {READABLE} file"
    if not path.is_file():
        raise ImageError("no such image", got=path, expected="an image file", fix=fix)
    refuse_stand_in(path, ImageError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes with transparency, of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                check_size(file.width, file.height, path)
                yield file
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise whatever they meet
        raise ImageError("the image cannot be read", got=error, expected=READABLE, where=path, fix=fix) from error


def _is_named_like_one(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in (*FORMATS, "MPO")


def _begins_like_one(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS):
                return True
    except Exception:
        return False
