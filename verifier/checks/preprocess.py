"""`preprocess.*`: pixels on their way in, against Hugging Face's image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from verifier.checks.common import Check, one_case, per_image
from verifier.errors import VerifierError
from verifier.evidence import Case, Evidence
from verifier.model.preprocess import frame_size, read_image
from verifier.model.vision import CLIP_MEAN, CLIP_STD
from verifier.types import CheckResult, Where

ALLOWED_STEP = 1.01 / 255
"""Square images take the same path in both: at most one step of rounding (measured: 0). Units: share of full scale."""
ALLOWED_MEAN = 0.03
"""Other images are padded after resizing here, before it there: the grid moves by up to a pixel. Mean absolute
difference inside the picture, in shares of full scale; measured at most 0.0201 on the golden images of llava_tiny
(fine textures)."""


def _hugging_face_pixels(case: Case, side_px: int) -> Any:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = {"height": side_px, "width": side_px}
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side_px}, crop_size=side, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    return processor(images=read_image(case.sample.golden.path), return_tensors="np")["pixel_values"][0]


def pixels(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Normalized pixels equal those of LLaVA-1.5's processor (pad to square, bicubic, CLIP mean and std) inside the picture.

    The margins differ by design: black here, the mean colour there.
    """
    return [_one(check, evidence, case) for case in evidence.cases]


def _one(check: Check, evidence: Evidence, case: Case) -> CheckResult:
    side_px = evidence.checkpoint.geometry.vision.image_px
    name = case.sample.golden.name
    std = np.array(CLIP_STD).reshape(3, 1, 1)
    try:
        expected = _hugging_face_pixels(case, side_px)
    except (VerifierError, ValueError, OSError) as error:
        return check.error(name, f"Hugging Face's processor failed: {error}")
    with torch.no_grad():
        actual = evidence.definition.vision.normalize(case.sample.image)[0].numpy()
    image = read_image(case.sample.golden.path)
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
    return check.passed(name, f"pixels as Hugging Face's ({key} {value:.4f})", **fields)


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
)
