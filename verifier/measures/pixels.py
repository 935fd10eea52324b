"""Pixels on their way in, against the checkpoint's processor as Hugging Face runs it; image files, against Hugging Face's loader."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verifier.core.errors import ImageError, VerifierError
from verifier.core.limits import limit
from verifier.core.types import Missing
from verifier.families.definition import Module
from verifier.families.family import PixelFormat
from verifier.families.pixels.image_file import read_image
from verifier.families.pixels.processor import DEFAULTS, ImageFields, Processor
from verifier.families.pixels.published import hugging_face_frame, hugging_face_image, normalization
from verifier.families.pixels.resampling import FILTERS, Pixels, resample
from verifier.families.samples import Sample
from verifier.measures.drawing import FILES, drawn
from verifier.measures.pictures import (
    DRAWN,
    DRAWN_CASES,
    FILE_CASES,
    LOSSY,
    DifferingPixels,
    FramedPixels,
    PictureEvidence,
    PictureRead,
    Size,
    frame_sizes,
)
from verifier.runner.protocol import Array

THUMBNAIL_PX, JPEG_QUALITY = 224, 78
Framed = Callable[[int, int], Iterable[Array]]
"""From the width and height of the picture in its frame to what it may be there: normalized pixels [3, height, width]."""


def measure_pictures(
    golden: Sequence[Sample],
    user: Sample | None,
    processor: Processor | Missing,
    form: PixelFormat,
    normalize: Module,
    *,
    square: bool,
    with_drawn: bool = True,
    with_files: bool = True,
) -> PictureEvidence:
    """Pixels of the golden pictures and of the user's, and, if they are wanted, of drawn ones; small files. `square` if the program takes no other pictures."""
    return PictureEvidence(
        processor,
        {sample.golden.name: measure_pixels(sample, processor, form, normalize) for sample in golden},
        Missing("no image was given", "verifier") if user is None else measure_pixels(user, processor, form, normalize),
        measure_drawn(processor, form, normalize, square=square) if with_drawn else {},
        measure_picture_files() if with_files else {},
        form.mean,
        form.std,
    )


def measure_pixels(
    sample: Sample, processor: Processor | Missing, form: PixelFormat, normalize: Module
) -> FramedPixels | Missing:
    """A golden picture or the user's: Hugging Face's loader reads the file, and Hugging Face's image processor resizes it to the same size."""
    fields = _fields(processor)
    try:
        picture = hugging_face_image(sample.golden.path)
    except (ValueError, OSError) as error:
        return Missing(f"Hugging Face's loader failed: {error}", "verifier")

    def expected(width: int, height: int) -> Iterator[Array]:
        yield hugging_face_frame(fields, picture, width, height)

    return _compare(picture, torch.from_numpy(sample.image), expected, form, normalize)


def measure_drawn(
    processor: Processor | Missing, form: PixelFormat, normalize: Module, *, square: bool
) -> dict[str, FramedPixels | Missing]:
    """Textured pictures of many shapes and modes, by case. The reference resizes by the filter's definition."""
    found = {}
    for case, (width, height, mode) in zip(DRAWN_CASES, DRAWN, strict=True):
        picture = drawn(width, height, mode)
        ours = form.prepare(picture, square=square)
        framed = _by_definition(_fields(processor), picture)
        found[case] = _compare(hugging_face_image(picture), ours, framed, form, normalize)
    return found


def _fields(processor: Processor | Missing) -> ImageFields:
    """The checkpoint's processor; transformers' defaults where there is none, which `preprocess.processor` says."""
    return ImageFields("no file", DEFAULTS) if isinstance(processor, Missing) else processor.image


def _by_definition(fields: ImageFields, image: Image.Image) -> Framed:
    """Both orders of the two passes; a grey picture once for its three channels."""
    picture = hugging_face_image(image)
    bands = picture[..., :1] if image.mode in ("L", "LA") else picture

    def framed(width: int, height: int) -> Iterator[Array]:
        kind = fields.value("resample")
        if isinstance(kind, bool) or kind not in FILTERS:
            raise VerifierError("the processor's filter is not known", got=kind, expected=", ".join(map(str, FILTERS)))
        factor, mean, std = normalization(fields)
        for rows_first in (True, False):
            resized: Pixels = resample(bands, width, height, kind, rows_first=rows_first)
            yield (resized.transpose(2, 0, 1) * factor - mean) / std

    return framed


def _compare(
    picture: Pixels, ours: Tensor, framed: Framed, form: PixelFormat, normalize: Module
) -> FramedPixels | Missing:
    """uint8 [3, h, w] behind the encoder's normalization; the order of passes that comes nearer counts."""
    picture_size, given = _size(picture), (ours.shape[2], ours.shape[1])
    possible = frame_sizes(*picture_size, form.side_px)
    if given not in possible and given != (form.side_px, form.side_px):
        return FramedPixels(picture_size, given, possible)
    width, height = given if given in possible else possible[0]
    with torch.no_grad():
        actual = normalize(ours)[0].numpy()
    left, top = (form.side_px - width) // 2, (form.side_px - height) // 2
    inside = actual[:, top : top + height, left : left + width]
    steps, worst = float("inf"), np.full(inside.shape, np.nan)
    try:
        for expected in framed(width, height):
            away = np.abs(inside - expected) * np.array(form.std).reshape(3, 1, 1) * 255
            if not steps <= float(away.max()):  # a NaN comes through
                steps, worst = float(away.max()), away
            if steps < 0.5:
                break
    except VerifierError as error:
        return Missing(f"there are no reference pixels: {error.one_line}", "verifier")
    channel, y, x = (int(i) for i in np.unravel_index(int(np.argmax(worst)), worst.shape))
    return FramedPixels(picture_size, given, possible, steps, (channel, y, x), *_margins(actual, (width, height), form))


def _margins(actual: Array, size: Size, form: PixelFormat) -> tuple[float, tuple[int, int]]:
    """How far the margin around a picture in the middle of normalized pixels [3, H, H] is from black, and its first element (row, column) that is
    beyond the limit."""
    (width, height), side_px = size, actual.shape[-1]
    left, top = (side_px - width) // 2, (side_px - height) // 2
    black = (-np.array(form.mean) / np.array(form.std)).reshape(3, 1, 1)
    margin = np.ones((side_px, side_px), bool)
    margin[top : top + height, left : left + width] = False
    if not margin.any():
        return 0.0, (0, 0)
    off, allowed = np.abs(actual - black).max(0), limit("preprocess.margins")
    beyond = np.argwhere(~(off <= allowed.value) & margin)
    y, x = (int(i) for i in beyond[0]) if len(beyond) else (0, 0)
    return float(off[margin].max()), (y, x)


def measure_picture_files() -> dict[str, PictureRead]:
    """Small files of every format that is read, with every orientation tag, by case."""
    with tempfile.TemporaryDirectory(prefix="verifier-pictures-") as folder:
        return {case: _read(case, Path(folder) / str(number)) for number, case in enumerate(FILE_CASES)}


def _read(case: str, stem: Path) -> PictureRead:
    """A file with the name `stem` and a suffix of its own. One of a format without loss is held against the upright picture that was stored, too."""
    stored = np.asarray(FILES[case](stem))
    path = next(stem.parent.glob(f"{stem.name}.*"))
    try:
        actual = np.asarray(read_image(path))
    except ImageError as error:
        return PictureRead(refusal=error.one_line)
    expected = {"Hugging Face's loader": hugging_face_image(path)}
    expected |= {} if case.startswith(LOSSY) else {"the picture that was stored": stored}
    differing = (DifferingPixels(name, _size(one), _differing(actual, one)) for name, one in expected.items())
    return PictureRead(_size(actual), tuple(differing))


def _size(pixels: Pixels) -> Size:
    return pixels.shape[1], pixels.shape[0]


def _differing(actual: Pixels, expected: Pixels) -> int:
    """Pixels that differ: all of the larger picture if their sizes do."""
    if actual.shape != expected.shape:
        return int(max(actual.size, expected.size) // 3)
    return int((actual != expected).any(-1).sum())


def thumbnail(pixels: Array, side_px: int) -> str:
    """uint8 [3, h, w] in the middle of a black square, as the encoder pads it, scaled down; JPEG in base64."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    frame = Image.new("RGB", (side_px, side_px))
    frame.paste(image, ((side_px - image.width) // 2, (side_px - image.height) // 2))
    frame.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    held = io.BytesIO()
    frame.save(held, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(held.getvalue()).decode()
