"""`preprocess.*`: pixels on their way in, against the checkpoint's processor as Hugging Face runs it."""

from __future__ import annotations

from dataclasses import dataclass

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
from verifier.checks.processor import constants, processor
from verifier.core.limits import limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import ENCODER
from verifier.measures.evidence import Evidence, Part
from verifier.measures.pictures import DRAWN_CASES, FILE_CASES, FramedPixels, PictureRead

PIXEL_LIMITS = ("preprocess.pixels", "preprocess.margins", "preprocess.frame")


@dataclass(frozen=True)
class Framed:
    """What was measured of some pictures, by case, in a frame of `side_px`."""

    pixels: dict[str, FramedPixels | Missing]
    side_px: int

    def judge(self, case: str) -> Finding:
        """Whether the pixels of a picture in its frame, and the margin around it, are as they should be."""
        pixels = self.pixels.get(case)
        if pixels is None or isinstance(pixels, Missing):
            return unverified(f"there are no pixels of {case}" if pixels is None else pixels.reason)
        return _judge(pixels, self.side_px)


@need(Part.PIXELS, golden=True)
def golden_pictures(evidence: Evidence) -> Framed:
    """The golden pictures."""
    return Framed(evidence.pictures.golden, evidence.geometry.vision.image_px)


@check(
    "preprocess.pixels",
    step="mapping",
    needs=golden_pictures,
    cases=per_image,
    limit=PIXEL_LIMITS,
    overlap="wrong pixels of golden pictures are often wrong sizes, too; the rest is seen by the answers",
)
def pixels(given: Framed, name: str) -> Finding:
    """The pixels of the picture in its frame differ by at most one step of 255 from the reference: Hugging Face's loader reads the file, and Hugging
    Face's image processor resizes it to the same size with the checkpoint's filter, mean and std. The picture is centred on black, and its longer
    side is as long as the frame."""
    return given.judge(name)


@need(Part.PIXELS)
def own_image(evidence: Evidence) -> Framed:
    """The user's own image."""
    return Framed({"image": evidence.pictures.user}, evidence.geometry.vision.image_px)


@check(
    "preprocess.image",
    step="mapping",
    needs=own_image,
    cases=fixed_cases("image"),
    limit=PIXEL_LIMITS,
    having={IMAGE},
    overlap="it is made for the picture of a user alone, which the bench does not give",
)
def image(given: Framed, case: str) -> Finding:
    """The same as `preprocess.pixels` for the user's own image."""
    return given.judge(case)


@need(Part.DRAWN_PIXELS)
def drawn_pictures(evidence: Evidence) -> Framed:
    """The pictures that are drawn."""
    return Framed(evidence.pictures.drawn, evidence.geometry.vision.image_px)


@check(
    "preprocess.sizes",
    step="mapping",
    needs=drawn_pictures,
    cases=fixed_cases(*DRAWN_CASES),
    limit=PIXEL_LIMITS,
    overlap="a wrong size gives wrong pixels; this one says which rule of sizes was broken",
)
def sizes(given: Framed, case: str) -> Finding:
    """The same for textured pictures of many shapes and modes. The reference resizes by the filter's definition instead of Hugging Face's processor,
    so that Pillow, which both use, is under test too."""
    return given.judge(case)


@need(Part.PICTURE_FILES)
def read_files(evidence: Evidence) -> dict[str, PictureRead]:
    """Small files, by case."""
    return evidence.pictures.files


@check("preprocess.files", step="mapping", needs=read_files, cases=fixed_cases(*FILE_CASES), limit="preprocess.files")
def files(read: dict[str, PictureRead], case: str) -> Finding:
    """Image files of every format that is read, with every orientation tag, give the pixels that Hugging Face's loader gives. Files of a format
    without loss give the upright picture that was stored."""
    picture = read.get(case)
    if picture is None or not (picture.refusal or picture.differing):
        return unverified(f"no file was read for the case {case}")
    if picture.refusal:
        return failed(f"the reader refuses a file that Hugging Face's loader reads: {picture.refusal}")
    allowed = limit("preprocess.files")
    for one in picture.differing:
        if not allowed.admits(one.pixels):
            (width, height), (right_width, right_height) = picture.size, one.size
            size = f"{width} x {height}, expected {right_width} x {right_height}"
            said = f"the pixels read from the file differ from {one.reference}: {one.pixels} pixels, size {size}. Check the orientation tag and the conversion to RGB."
            return failed(said, measured={"different": one.pixels}, allowed={"different": allowed.value})
    return passed(
        "the same pixels as Hugging Face's loader reads",
        measured={"different": 0},
        allowed={"different": allowed.value},
    )


def _judge(pixels: FramedPixels, side_px: int) -> Finding:
    possible, (width, height) = pixels.possible, pixels.size
    if pixels.size not in possible and pixels.size != (side_px, side_px):
        said = f"the pixels are {width} x {height}, expected {possible[0][0]} x {possible[0][1]}: the picture of {pixels.picture[0]} x {pixels.picture[1]} px in a frame of {side_px}"
        return failed(said, where=Where(method=ENCODER))
    width, height = pixels.size if pixels.size in possible else possible[0]
    allowed, steps = limit("preprocess.pixels"), pixels.worst_steps
    fields: Fields = {"measured": {"worst_steps": steps}, "allowed": {"worst_steps": allowed.value}}
    if not allowed.admits(steps):
        channel, y, x = pixels.index
        return failed(
            f"pixels differ by {steps:.1f} steps of 255 from the checkpoint's processor, most in channel {'RGB'[channel]} at column {x}, row {y} "
            f"of the {width} x {height} picture; allowed {allowed.value:g}. Check the orientation, the channel order, the resampling filter, mean and std.",
            fields,
            where=Where(method=ENCODER, index=(channel, y, x)),
        )
    if not limit("preprocess.margins").admits(pixels.margin_off):
        left, top = (side_px - width) // 2, (side_px - height) // 2
        y, x = pixels.margin_index
        said = f"the margin is not black at column {x}, row {y}: the picture of {width} x {height} must be placed at column {left}, row {top}"
        hint = "Check the fill colour, and that an odd margin puts its extra pixel right and below."
        return failed(f"{said}. {hint}", where=Where(method=ENCODER, index=(y, x)))
    return passed(f"pixels equal those of the checkpoint's processor within {steps:.2f} steps", fields)


CHECKS = (constants, processor, files, pixels, sizes, image)
