"""`preprocess.*`: pixels on their way in, against the checkpoint's processor as Hugging Face runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verifier.checks.bands import Conversations, calls_of_conversations, whole
from verifier.checks.check import (
    IMAGE,
    Fields,
    Finding,
    check,
    failed,
    fixed_cases,
    need,
    passed,
    per_image,
    unverified,
)
from verifier.checks.pictures import DRAWN_CASES, DRAWN_OF, FILE_CASES, FILES, LOSSY, drawn
from verifier.checks.processor import constants, processor
from verifier.core.limits import limit
from verifier.errors import ImageError, VerifierError
from verifier.evidence import Case, Evidence, Part
from verifier.families.conventions import ENCODER
from verifier.families.llava.preprocess import prepare_image
from verifier.families.llava.vision import CLIP_MEAN, CLIP_STD
from verifier.families.pixels.image_file import read_image
from verifier.families.pixels.processor import DEFAULTS, ImageFields, read_processor
from verifier.families.pixels.resampling import FILTERS, Pixels, resample
from verifier.published import hugging_face_frame, hugging_face_image, normalization
from verifier.types import Missing, Where

PIXEL_LIMITS = ("preprocess.pixels", "preprocess.margins", "preprocess.frame")
Framed = Callable[[int, int], Iterable[Any]]
"""From the width and height of the picture in its frame to what it may be there: normalized pixels [3, height, width]."""


@check("preprocess.pixels", step="mapping", needs=calls_of_conversations, cases=per_image, limit=PIXEL_LIMITS)
def pixels(given: Conversations, name: str) -> Finding:
    """The pixels of the picture in its frame differ by at most one step of 255 from the reference: Hugging Face's loader reads the file, and Hugging
    Face's image processor resizes it to the same size with the checkpoint's filter, mean and std. The picture is centred on black, and its longer
    side is as long as the frame."""
    return _as_hugging_face(given.evidence, given.cases[name])


@dataclass(frozen=True)
class OwnImage:
    """The user's own image, and all other evidence."""

    evidence: Evidence
    case: Case


@need(Part.CONVERSATIONS)
def own_image(evidence: Evidence) -> OwnImage | Missing:
    """The user's own image."""
    if evidence.user_case is None:
        return Missing("no image was given", "verifier")
    return OwnImage(evidence, evidence.user_case)


@check(
    "preprocess.image", step="mapping", needs=own_image, cases=fixed_cases("image"), limit=PIXEL_LIMITS, having={IMAGE}
)
def image(given: OwnImage, _case: str) -> Finding:
    """The same as `preprocess.pixels` for the user's own image."""
    return _as_hugging_face(given.evidence, given.case)


def _as_hugging_face(evidence: Evidence, case: Case) -> Finding:
    fields = _fields(evidence)
    try:
        picture = hugging_face_image(case.sample.golden.path)
    except (ValueError, OSError) as error:
        return unverified(f"Hugging Face's loader failed: {error}")

    def expected(width: int, height: int) -> Iterator[Any]:
        yield hugging_face_frame(fields, picture, width, height)

    return _compare(evidence, picture, case.sample.image, expected)


@check("preprocess.sizes", step="mapping", needs=whole, cases=fixed_cases(*DRAWN_CASES), limit=PIXEL_LIMITS)
def sizes(evidence: Evidence, case: str) -> Finding:
    """The same for textured pictures of many shapes and modes. The reference resizes by the filter's definition instead of Hugging Face's processor,
    so that Pillow, which both use, is under test too."""
    side_px, square = evidence.geometry.vision.image_px, evidence.recipe.static_image_shape
    picture = drawn(*DRAWN_OF[case])
    ours = prepare_image(picture, side_px=side_px, square=square)
    return _compare(evidence, hugging_face_image(picture), ours, _by_definition(_fields(evidence), picture))


def _by_definition(fields: ImageFields, image: Image.Image) -> Framed:
    """Both orders of the two passes; a grey picture once for its three channels."""
    picture = hugging_face_image(image)
    bands = picture[..., :1] if image.mode in ("L", "LA") else picture

    def framed(width: int, height: int) -> Iterator[Any]:
        kind = fields.value("resample")
        if isinstance(kind, bool) or kind not in FILTERS:
            raise VerifierError("the processor's filter is not known", got=kind, expected=", ".join(map(str, FILTERS)))
        factor, mean, std = normalization(fields)
        for rows_first in (True, False):
            resized: Pixels = resample(bands, width, height, kind, rows_first=rows_first)
            yield (resized.transpose(2, 0, 1) * factor - mean) / std

    return framed


@check(
    "preprocess.files",
    step="mapping",
    needs=need()(lambda _evidence: None),
    cases=fixed_cases(*FILE_CASES),
    limit="preprocess.files",
)
def files(_nothing: None, case: str) -> Finding:
    """Image files of every format that is read, with every orientation tag, give the pixels that Hugging Face's loader gives. Files of a format
    without loss give the upright picture that was stored."""
    with tempfile.TemporaryDirectory(prefix="verifier-pictures-") as folder:
        return _read(case, Path(folder) / "picture")


def _read(case: str, stem: Path) -> Finding:
    stored = np.asarray(FILES[case](stem))
    path = next(stem.parent.glob(f"{stem.name}.*"))
    try:
        actual = np.asarray(read_image(path))
    except ImageError as error:
        return failed(f"the reader refuses a file that Hugging Face's loader reads: {error.one_line}")
    expected = {"Hugging Face's loader": hugging_face_image(path)}
    expected |= {} if case.startswith(LOSSY) else {"the picture that was stored": stored}
    allowed = limit("preprocess.files")
    for name, picture in expected.items():
        different = _differing(actual, picture)
        if not allowed.admits(different):
            size = f"{actual.shape[1]} x {actual.shape[0]}, expected {picture.shape[1]} x {picture.shape[0]}"
            said = f"the file is not read as {name} has it: {different} pixels differ, {size}. Check the orientation tag and the conversion to RGB."
            return failed(said, measured={"different": different}, allowed={"different": allowed.value})
    return passed(
        "read as Hugging Face's loader reads it", measured={"different": 0}, allowed={"different": allowed.value}
    )


def _differing(actual: Any, expected: Any) -> int:
    """Pixels that differ: all of the larger picture if their sizes do."""
    if actual.shape != expected.shape:
        return int(max(actual.size, expected.size) // 3)
    return int((actual != expected).any(-1).sum())


def _fields(evidence: Evidence) -> ImageFields:
    """The checkpoint's processor; transformers' defaults where there is none, which `preprocess.processor` says."""
    try:
        return read_processor(evidence.checkpoint.directory).image
    except VerifierError:
        return ImageFields("no file", DEFAULTS)


def frame_sizes(width: int, height: int, side_px: int) -> tuple[tuple[int, int], ...]:
    """The sizes (width, height) that a picture may have in its frame: the longer side the frame's, the other even, at least 2, and as near to the
    ratio as an even number is. Two of them halfway between."""
    exact = Fraction(side_px * min(width, height), max(width, height))
    near = [even for even in range(2, side_px + 1, 2) if limit("preprocess.frame").admits(float(abs(even - exact)))]
    near = near or [2 if exact < 2 else side_px]
    return tuple((side_px, short) if width >= height else (short, side_px) for short in near)


def _compare(evidence: Evidence, picture: Pixels, ours: Tensor, framed: Framed) -> Finding:
    side_px = evidence.geometry.vision.image_px
    possible = frame_sizes(picture.shape[1], picture.shape[0], side_px)
    given = (ours.shape[2], ours.shape[1])
    if given not in possible and given != (side_px, side_px):
        said = f"the pixels are {given[0]} x {given[1]}, expected {possible[0][0]} x {possible[0][1]}: the picture of {picture.shape[1]} x {picture.shape[0]} px in a frame of {side_px}"
        return failed(said, where=Where(method=ENCODER))
    width, height = given if given in possible else possible[0]
    with torch.no_grad():
        actual = evidence.definition.vision.normalize(ours)[0].numpy()
    left, top = (side_px - width) // 2, (side_px - height) // 2
    inside = actual[:, top : top + height, left : left + width]
    allowed = limit("preprocess.pixels")
    steps, worst = float("inf"), np.full(inside.shape, np.nan)
    try:
        for expected in framed(width, height):
            away = np.abs(inside - expected) * np.array(CLIP_STD).reshape(3, 1, 1) * 255
            if not steps <= float(away.max()):  # a NaN comes through
                steps, worst = float(away.max()), away
            if steps < 0.5:
                break
    except VerifierError as error:
        return unverified(f"there is nothing to compare the pixels with: {error.one_line}")
    fields: Fields = {"measured": {"worst_steps": steps}, "allowed": {"worst_steps": allowed.value}}
    if not allowed.admits(steps):
        channel, y, x = (int(i) for i in np.unravel_index(int(np.argmax(worst)), worst.shape))
        return failed(
            f"pixels differ by {steps:.1f} steps of 255 from the checkpoint's processor, most in channel {'RGB'[channel]} at column {x}, row {y} "
            f"of the {width} x {height} picture; allowed {allowed.value:g}. Check the orientation, the channel order, the resampling filter, mean and std.",
            fields,
            where=Where(method=ENCODER, index=(channel, y, x)),
        )
    margins = _margins(actual, (width, height), side_px)
    return margins or passed(f"pixels as the checkpoint's processor has them, to {steps:.2f} steps", fields)


def _margins(actual: Any, size: tuple[int, int], side_px: int) -> Finding | None:
    """The picture is centred, the odd pixel right and below, and all around it is black."""
    width, height = size
    left, top = (side_px - width) // 2, (side_px - height) // 2
    black = (-np.array(CLIP_MEAN) / np.array(CLIP_STD)).reshape(3, 1, 1)
    margin = np.ones((side_px, side_px), bool)
    margin[top : top + height, left : left + width] = False
    off = np.abs(actual - black).max(0)
    allowed = limit("preprocess.margins")
    if not margin.any() or allowed.admits(float(off[margin].max())):
        return None
    y, x = (int(i) for i in np.argwhere(~(off <= allowed.value) & margin)[0])
    said = f"the margin is not black at column {x}, row {y}: the picture of {width} x {height} belongs at {left}, {top}"
    hint = "Check the fill colour, and that an odd margin puts its extra pixel right and below."
    return failed(f"{said}. {hint}", where=Where(method=ENCODER, index=(y, x)))


CHECKS = (constants, processor, files, pixels, sizes, image)
