"""Pictures as Hugging Face reads them, and as the checkpoint's own processor makes them: the reference of everything on the way in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verifier.core import upstream
from verifier.core.compare import Difference, compare
from verifier.core.errors import CheckpointError, VerifierError
from verifier.families.checkpoint import Checkpoint
from verifier.families.pixels.processor import ImageFields, read_processor
from verifier.families.pixels.resampling import Pixels
from verifier.families.samples import Answered, PublishedAnswer, Sample
from verifier.runner.protocol import Array

MEASURED_IMAGES, OF_LARGE = 5, 1
"""Golden images on which the cost of a frame that differs by design is measured. Each is one more fp32 answer: 0.13 s of llava_tiny."""


def hugging_face_image(source: Path | Image.Image) -> Pixels:
    """uint8 [h, w, 3] as Hugging Face's own loader reads a file, or converts an image."""
    given = str(source) if isinstance(source, Path) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of palettes with transparency
        return np.asarray(upstream.LOAD_IMAGE.resolve()(given), np.uint8)


def hugging_face_frame(fields: ImageFields, pixels: Pixels, width: int, height: int) -> Any:
    """uint8 [h, w, 3] -> normalized pixels [3, height, width]: resized, rescaled and normalized by Hugging Face's image processor
    with the filter, the factor, mean and std of the checkpoint's file."""
    size = {"height": height, "width": width}
    return _process(fields, pixels, size=size, do_center_crop=False, do_pad=False)


def normalization(fields: ImageFields) -> tuple[float, Any, Any]:
    """The factor, mean and std [3, 1, 1] of the checkpoint's file. Raises `CheckpointError` if they are not numbers."""
    try:
        factor = float(fields.value("rescale_factor"))
        mean, std = (np.array(fields.value(name), float).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "mean, std or factor of the processor are no numbers", got=error, where=fields.file
        ) from error
    return factor, mean, std


def published_pixels(fields: ImageFields, pixels: Pixels) -> Array:
    """uint8 [h, w, 3] -> normalized pixels [1, 3, H, H] as the checkpoint's own processor frames them."""
    framed: Array = _process(
        fields,
        pixels,
        size=fields.edges("size"),
        do_center_crop=fields.value("do_center_crop"),
        crop_size=fields.edges("crop_size"),
        do_pad=fields.framing == "pad",
    )
    return framed[None]


def _process(fields: ImageFields, pixels: Pixels, **geometry: Any) -> Any:
    """Raises `CheckpointError` for fields that Hugging Face's processor does not take."""
    taken = {name: fields.value(name) for name in ("resample", "rescale_factor", "image_mean", "image_std")}
    make = upstream.LLAVA_IMAGE_PROCESSOR.resolve()
    try:
        processor = make(**taken, **geometry)
        return processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    except Exception as error:  # whatever a field of the wrong type makes of it
        raise CheckpointError("Hugging Face's image processor failed", got=error, where=fields.file) from error


def published_samples(checkpoint: Checkpoint, samples: Sequence[Sample], *, large: bool) -> list[Sample]:
    """Some of the samples whose image is not square, evenly spread, with the pixels of the checkpoint's own processor. None where the
    processor does not frame pictures in a way that differs by design, or makes frames that the model does not take."""
    try:
        fields = read_processor(checkpoint.directory).image
        if fields.framing not in ("pad", "crop"):
            return []
        several = [sample for sample in samples if not _is_square(sample.golden.path)]
        most = min(OF_LARGE if large else MEASURED_IMAGES, len(several))
        chosen = [several[int(i)] for i in np.linspace(0, len(several) - 1, most)]
        made = [replace(s, pixels=published_pixels(fields, hugging_face_image(s.golden.path))) for s in chosen]
        frame = (1, 3, *[checkpoint.geometry.vision.image_px] * 2)
        return [s for s in made if s.pixels is not None and s.pixels.shape == frame]
    except VerifierError:
        return []  # the check of the processor's file says why


def _is_square(path: Path) -> bool:
    with Image.open(path) as file:
        return file.width == file.height


def compare_published(
    samples: Sequence[Sample], published: Sequence[Sample], answers: Sequence[Answered]
) -> tuple[PublishedAnswer, ...]:
    """What the published frames change. `answers` are those to `samples`, then those to `published`."""
    own = {sample.golden.name: answer for sample, answer in zip(samples, answers, strict=False)}
    found = []
    for sample, answer in zip(published, answers[len(samples) :], strict=True):
        made = compare(actual=own[sample.golden.name].vision, expected=answer.vision)
        same = answer.favoured == tuple(sample.golden.ids)
        found.append(PublishedAnswer(sample.golden.name, made.sqnr_db if isinstance(made, Difference) else None, same))
    return tuple(found)
