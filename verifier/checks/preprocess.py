"""`preprocess.*`: pixels on their way in, against Hugging Face's image processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from verifier.checks.common import Check, fixed_cases, one_case, per_image
from verifier.core.compare import Difference, compare
from verifier.errors import VerifierError
from verifier.evidence import Evidence
from verifier.model.preprocess import frame_size, prepare_image, read_image
from verifier.model.vision import CLIP_MEAN, CLIP_STD
from verifier.types import CheckResult, Where

ALLOWED_STEP = 1.01 / 255
"""Square images take the same path in both: at most one step of rounding (measured: 0). Units: share of full scale."""
ALLOWED_MEAN = 0.03
"""Other images are padded after resizing here, before it there: the grid moves by up to a pixel. Mean absolute
difference inside the picture, in shares of full scale; measured at most 0.0201 on the golden images of llava_tiny
(fine textures)."""


SIZES = (
    (336, 336),
    (335, 335),
    (37, 37),
    (640, 480),
    (480, 640),
    (97, 131),
    (337, 251),
    (1024, 576),
    (1001, 333),
    (333, 1001),
    (50, 20),
    (1200, 60),
)
"""Width and height in pixels: squares, ordinary and odd sizes, wide and tall ones up to 20 : 1."""
SIZE_CASES = tuple(f"{width} x {height}" for width, height in SIZES)


def _hugging_face_pixels(image: Image.Image, side_px: int) -> Any:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = {"height": side_px, "width": side_px}
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side_px}, crop_size=side, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    return processor(images=image, return_tensors="np")["pixel_values"][0]


def pixels(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Normalized pixels equal those of LLaVA-1.5's processor (pad to square, bicubic, CLIP mean and std) inside the picture.

    The margins differ by design: black here, the mean colour there.
    """
    return [
        _compare(check, evidence, case.sample.golden.name, read_image(case.sample.golden.path), case.sample.image)
        for case in evidence.cases
    ]


def sizes(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The same for a drawn picture in twelve sizes, and what the margins' colour does to the image tokens in fp32."""
    square = evidence.recipe.static_image_shape
    side_px = evidence.checkpoint.geometry.vision.image_px
    found = []
    for case, (width, height) in zip(SIZE_CASES, SIZES, strict=True):
        image = drawn(width, height)
        ours = prepare_image(image, side_px=side_px, square=square)
        result = _compare(check, evidence, case, image, ours)
        with torch.no_grad():
            vision = evidence.definition.vision
            theirs = torch.from_numpy(np.asarray(_hugging_face_pixels(image, side_px)))[None]
            tokens = [vision.projector(vision.tower(x)).numpy() for x in (vision.normalize(ours), theirs)]
        made = compare(actual=tokens[0], expected=tokens[1])
        effect = made.sqnr_db if isinstance(made, Difference) else None
        found.append(replace(result, measured=result.measured | {"tokens_with_their_margins_db": effect}))
    return found


def drawn(width: int, height: int) -> Image.Image:
    """A picture with edges, a colour ramp and some texture: every channel, side and corner of it is different."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rings = 0.5 + 0.5 * np.sin(20 * np.hypot(x - 0.3, y - 0.6))
    red, green = 0.2 + 0.8 * x, 0.1 + 0.7 * y
    blue = np.where((x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.04, 0.9, 0.6 * rings)
    return Image.fromarray((np.stack([red, green, blue], -1) * 255).round().astype(np.uint8))


def _compare(check: Check, evidence: Evidence, name: str, image: Image.Image, ours: torch.Tensor) -> CheckResult:
    side_px = evidence.checkpoint.geometry.vision.image_px
    std = np.array(CLIP_STD).reshape(3, 1, 1)
    try:
        expected = _hugging_face_pixels(image, side_px)
    except (VerifierError, ValueError, OSError) as error:
        return check.error(name, f"Hugging Face's processor failed: {error}")
    with torch.no_grad():
        actual = evidence.definition.vision.normalize(ours)[0].numpy()
    width, height = frame_size(image.width, image.height, side_px=side_px)
    left, top = (side_px - width) // 2 + (width < side_px), (side_px - height) // 2 + (height < side_px)
    inside = (slice(None), slice(top, max(top + 1, side_px - top)), slice(left, max(left + 1, side_px - left)))
    difference = np.abs((actual - expected) * std)[inside]
    square = image.width == image.height
    value, bound = (float(difference.max()), ALLOWED_STEP) if square else (float(difference.mean()), ALLOWED_MEAN)
    key = "worst difference" if square else "mean difference"
    fields = {"measured": {key: value}, "allowed": {key: bound}}
    if not value <= bound:
        channel = int(difference.mean((1, 2)).argmax())
        return check.failed(
            name,
            f"pixels differ from Hugging Face's by {value:.4f} of full scale ({key}), allowed {bound:.4f}, most in channel {'RGB'[channel]}. "
            "Check channel order, mean and std, the resampling filter and the padding.",
            where=Where(method="vision_encoder", index=(channel,)),
            **fields,
        )
    margins = _margins(check, name, actual, (width, height), side_px)
    return margins or check.passed(name, f"pixels as Hugging Face's ({key} {value:.4f})", **fields)


def _margins(check: Check, name: str, actual: Any, size: tuple[int, int], side_px: int) -> CheckResult | None:
    """The picture is centred, the odd pixel right and below, and all around it is black."""
    width, height = size
    left, top = (side_px - width) // 2, (side_px - height) // 2
    black = (-np.array(CLIP_MEAN) / np.array(CLIP_STD)).reshape(3, 1, 1)
    margin = np.ones((side_px, side_px), bool)
    margin[top : top + height, left : left + width] = False
    off = (np.abs(actual - black).max(0) > 1e-5) & margin
    if not off.any():
        return None
    y, x = (int(i) for i in np.argwhere(off)[0])
    said = f"the margin is not black at column {x}, row {y}: the picture of {width} x {height} belongs at {left}, {top}"
    hint = "Check the fill colour, and that an odd margin puts its extra pixel right and below."
    return check.failed(name, f"{said}. {hint}", where=Where(method="vision_encoder", index=(y, x)))


def constants(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The checkpoint's processor uses the mean and std that the program has built in."""
    from verifier.checkpoint import read_json

    folder = evidence.checkpoint.directory
    found = next(
        (p for p in (folder / "processor_config.json", folder / "preprocessor_config.json") if p.is_file()), None
    )
    if found is None:
        return [check.error("program", "the checkpoint has no processor configuration to compare with")]
    config = read_json(found, limit_bytes=1 << 20)
    config = config.get("image_processor", config)
    for field, expected in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        actual = config.get(field)
        if (
            not isinstance(actual, list)
            or len(actual) != 3
            or not np.allclose(np.array(actual, float), expected, atol=1e-6)
        ):
            return [
                check.failed(
                    "program",
                    f"{found.name} has {field} {actual}, the program has {list(expected)}. Export with the checkpoint's own values.",
                )
            ]
    return [check.passed("program", "mean and std of the checkpoint's processor are those of the program")]


CHECKS = (
    Check("preprocess.constants", "mapping", one_case, constants),
    Check("preprocess.pixels", "mapping", per_image, pixels),
    Check("preprocess.sizes", "mapping", fixed_cases(*SIZE_CASES), sizes),
)
