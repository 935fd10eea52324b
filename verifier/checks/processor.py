"""The checkpoint's processor file against the program, field by field: `preprocess.constants` and `preprocess.processor`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from verifier.checks.check import Finding, check, failed, fixed_cases, need, one_case, passed, unverified
from verifier.core.limits import limit
from verifier.core.types import Missing
from verifier.families.geometry import Geometry, VisionGeometry
from verifier.families.pixels.processor import DEFAULTS, ImageFields, Processor
from verifier.families.pixels.resampling import FILTERS
from verifier.families.samples import PublishedAnswer
from verifier.measures.evidence import Evidence, Part

BICUBIC = 3


@dataclass(frozen=True)
class Stated:
    """The checkpoint's shape, its processor files, mean and std of the program, whether it frames and normalizes pictures `inside`, and what the
    files cost where they differ by design."""

    geometry: Geometry
    processor: Processor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inside: bool
    published: tuple[PublishedAnswer, ...] = ()


def _take(evidence: Evidence) -> Stated | Missing:
    pictures = evidence.pictures
    if isinstance(pictures.processor, Missing):
        return pictures.processor
    return Stated(
        evidence.geometry,
        pictures.processor,
        pictures.mean,
        pictures.std,
        evidence.convention.pixels == "bytes",
        evidence.published,
    )


@need()
def files_alone(evidence: Evidence) -> Stated | Missing:
    """The processor files."""
    return _take(evidence)


@need(Part.PUBLISHED)
def files_and_cost(evidence: Evidence) -> Stated | Missing:
    """The processor files, and what the fp32 model answers to pictures that are framed as they say."""
    return _take(evidence)


@check(
    "preprocess.constants",
    step="mapping",
    needs=files_alone,
    cases=one_case,
    limit="preprocess.constants",
    overlap="a wrong mean or std also changes the constants in the file; this one looks at the checkpoint's processor",
)
def constants(stated: Stated, _case: str) -> Finding:
    """The mean and std in the checkpoint's processor files are those that are built into the program, or that pictures are normalized with before
    they go into a program that takes normalized pixels."""
    where = "the program has" if stated.inside else "this verification normalizes pictures with"
    for source in stated.processor.sources:
        for field, expected in (("image_mean", stated.mean), ("image_std", stated.std)):
            actual = source.value(field)
            if not _near(actual, expected):
                return failed(
                    f"{source.file} has {field} {_shown(actual)}, {where} {list(expected)}. Export with the checkpoint's own values.",
                )
    return passed("mean and std of the checkpoint's processor are those of the program")


def _near(actual: Any, expected: tuple[float, ...]) -> bool:
    if not isinstance(actual, list) or len(actual) != len(expected) or not all(_is_number(value) for value in actual):
        return False
    return limit("preprocess.constants").admits(float(np.abs(np.array(actual, float) - expected).max()))


@dataclass(frozen=True)
class Rule:
    """A field of the image processor: whether a source is as the program needs it, what that is, and what a difference means."""

    holds: Callable[[ImageFields, VisionGeometry], bool]
    expected: Callable[[VisionGeometry], object]
    means: str


def _flag(field: str, expected: bool, means: str) -> Rule:
    return Rule(lambda source, _: source.value(field) is expected, lambda _: expected, means)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _side_is_the_frames(source: ImageFields, vision: VisionGeometry) -> bool:
    """A frame of the model's size; height and width without padding would squash the picture, which the program never does."""
    edges = source.edges("size")
    right = set(edges) in ({"shortest_edge"}, {"height", "width"}) and set(edges.values()) == {vision.image_px}
    return right and source.framing != "squash"


def _crop_is_the_frame(source: ImageFields, vision: VisionGeometry) -> bool:
    edges = source.edges("crop_size")
    return source.value("do_center_crop") is not True or (
        set(edges) == {"height", "width"} and set(edges.values()) == {vision.image_px}
    )


def _factor_is_right(source: ImageFields, _vision: VisionGeometry) -> bool:
    factor = source.value("rescale_factor")
    return _is_number(factor) and limit("preprocess.constants").admits(abs(factor * 255 - 1))


RULES: dict[str, Rule] = {
    "image_processor_type": Rule(
        lambda source, _: source.kind is not None,
        lambda _: "CLIPImageProcessor or LlavaImageProcessor",
        "the checkpoint belongs to another kind of processor, whose fields mean something else",
    ),
    "do_convert_rgb": _flag(
        "do_convert_rgb",
        True,
        "the processor does not convert grey pictures and pictures with alpha, the program takes RGB only",
    ),
    "do_resize": _flag(
        "do_resize", True, "the processor does not resize pictures, the program takes them resized to its frame"
    ),
    "size": Rule(
        _side_is_the_frames,
        lambda vision: f"shortest_edge {vision.image_px}, or height and width {vision.image_px} with do_pad",
        "the processor makes frames of another size or ratio than the program's",
    ),
    "resample": Rule(
        lambda source, _: source.value("resample") is not True and source.value("resample") == BICUBIC,
        lambda _: f"{BICUBIC} (bicubic)",
        "the processor resizes with another filter than the runners of this program",
    ),
    "do_center_crop": Rule(
        lambda source, _: source.framing != "other" and isinstance(source.value("do_center_crop"), bool),
        lambda _: "true, or do_pad",
        "the processor's frames are not square",
    ),
    "crop_size": Rule(
        _crop_is_the_frame,
        lambda vision: f"height and width {vision.image_px}",
        "the processor crops to another frame than the program's",
    ),
    "do_pad": Rule(
        lambda source, _: isinstance(source.value("do_pad"), bool),
        lambda _: "true or false",
        "the verifier does not know how this processor makes pictures square",
    ),
    "do_rescale": _flag("do_rescale", True, "the processor's pixels go up to 255, the program's up to 1"),
    "rescale_factor": Rule(_factor_is_right, lambda _: "1/255", "the program scales pixels by 1/255"),
    "do_normalize": _flag(
        "do_normalize",
        True,
        "the processor's pixels keep their mean and spread, the program subtracts a mean and divides by a std",
    ),
}
"""Of the image processor; mean and std are `preprocess.constants`."""
TOKEN_CASES = (
    "patch_size",
    "num_additional_image_tokens",
    "vision_feature_select_strategy",
    "image_seq_length",
    "image_token",
)
OTHER = "other fields"
CASES = (*RULES, *TOKEN_CASES, OTHER)
_SAYS_NOTHING = frozenset(
    {
        *(
            "processor_class",
            "image_processor_type",
            "feature_extractor_type",
            "_valid_processor_keys",
            "transformers_version",
        ),
        *("_processor_class", "_commit_hash", "_name_or_path", "chat_template", "tokenizer_class", "use_fast"),
        *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    }
)
"""Fields that do not change what a picture becomes: names, and the form in which arrays come back."""
_KNOWN = _SAYS_NOTHING | DEFAULTS.keys() | frozenset(TOKEN_CASES)


@check(
    "preprocess.processor",
    step="mapping",
    needs=files_and_cost,
    cases=fixed_cases(*CASES),
    limit="preprocess.constants",
    overlap="a picture that is prepared otherwise also gives other pixels",
)
def processor(stated: Stated, field: str) -> Finding:
    """Every field of the checkpoint's processor files describes what the program does: resizing, filter, rescaling, normalization, tokens of an
    image. A missing field counts as the value that transformers takes for it. How a picture that is not square fills the frame differs by design;
    every report names this difference with its measured cost."""
    if field in RULES:
        return _judge_rule(stated, field)
    if field in TOKEN_CASES:
        return _judge_token(stated.geometry, stated.processor, field)
    return _judge_others(stated.processor)


def _judge_rule(stated: Stated, field: str) -> Finding:
    found, rule, vision = stated.processor, RULES[field], stated.geometry.vision
    for source in found.sources:
        if not rule.holds(source, vision):
            return failed(f"{_stated(source, field)}, expected {rule.expected(vision)}: {rule.means}")
    exception = _exception(stated, field)
    if exception:
        return passed(f"by design: {exception}", exception=exception)
    return passed(f"{_stated(found.image, field)}, as in the program")


def _stated(source: ImageFields, field: str) -> str:
    """What a file says about a field, or what transformers takes where it says nothing."""
    named = field != "image_processor_type" or field in source.fields
    value: Any = source.value(field) if named else source.kind
    shown = f"{value} ({FILTERS[value]})" if field == "resample" and _names_filter(value) else _shown(value)
    if field in source.fields:
        return f"{source.file} has {field} {shown}"
    return f"{source.file} has no {field}, for which transformers takes {shown}"


def _names_filter(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value in FILTERS


def _shown(value: object) -> str:
    return json.dumps(value)[:200] if value is not None else "none"


FRAMINGS = {
    "pad": ("do_pad", "pads pictures to a square with the mean colour before it resizes them"),
    "crop": ("do_center_crop", "resizes the shorter side to the frame and crops the middle"),
}
"""Frames that differ by design: the field that says so, and what the processor does."""


def _exception(stated: Stated, field: str) -> str:
    """The named exception that belongs to a field, with its cost; nothing if there is none."""
    source = stated.processor.image
    decisive, does = FRAMINGS.get(source.framing, ("", ""))
    if field != decisive:
        return ""
    here = (
        "LLaVA on ExecuTorch resizes the longer side and pads with black, because constant padding is what its kernels have"
        if stated.inside
        else "the program takes pixels as an app frames them, and this verification resizes the longer side and pads with black"
    )
    return f"{source.file} {does}; {here}. Square pictures are the same in both. {_cost(stated.published)}"


def _cost(answers: tuple[PublishedAnswer, ...]) -> str:
    if not answers:
        return "The cost was not measured: there is no golden picture that is not square."
    known = [a.tokens_db for a in answers if a.tokens_db is not None]
    apart = f"at {min(known):.1f} to {max(known):.1f} dB (SQNR) against" if known else "not comparable with"
    same = sum(a.same for a in answers)
    names = ", ".join(a.name for a in answers)
    return (
        f"Cost, measured in this run with the fp32 model on {len(answers)} golden pictures that are not square ({names}): image tokens "
        f"{apart} the processor's, {same} of {len(answers)} captions unchanged."
    )


def _judge_token(geometry: Geometry, found: Processor, field: str) -> Finding:
    """The fields that count an image's tokens, against config.json. The program does not read them: a missing one is not wrong."""
    vision, tokens = geometry.vision, found.tokens
    expected, means = {
        "patch_size": (vision.patch_px, "the vision tower of config.json has another patch size"),
        "num_additional_image_tokens": (1, "CLIP's tower adds one token, its class token"),
        "vision_feature_select_strategy": ("default", "config.json and the program drop the class token"),
        "image_seq_length": (vision.patches, "the program gives another number of tokens for an image"),
        "image_token": (geometry.image_token_id, "config.json has another token for the image"),
    }[field]
    source = next((s for s in (tokens, *found.sources) if field in s.fields), None)
    if source is None:
        count = _counted(found, vision)
        said = f"no file has {field}" + (
            f"; transformers then counts {count} tokens of an image, the program gives {vision.patches}"
            if count != vision.patches
            else ""
        )
        return passed(f"{said}; the program does not need it")
    actual: Any = source.fields[field]
    if field == "image_token":
        return _judge_image_token(geometry.image_token_id, found.added_ids, source, actual)
    if isinstance(actual, bool) or actual != expected:
        return failed(f"{source.file} has {field} {_shown(actual)}, expected {expected}: {means}")
    return passed(f"{source.file} has {field} {_shown(actual)}, as in config.json")


def _counted(found: Processor, vision: VisionGeometry) -> int | None:
    """The tokens that transformers' processor counts for an image; None without a patch size, when it takes the model's own number."""
    fields = found.tokens.fields
    patch, more = fields.get("patch_size"), fields.get("num_additional_image_tokens", 0)
    if not isinstance(patch, int) or not isinstance(more, int) or patch < 1:
        return vision.patches
    dropped = fields.get("vision_feature_select_strategy") == "default"
    return (vision.image_px // patch) ** 2 + more - dropped


def _judge_image_token(
    expected: int, ids: dict[str, int] | Missing | None, source: ImageFields, token: object
) -> Finding:
    if ids is None:
        return passed(f"{source.file} has image_token {_shown(token)}; there is no tokenizer.json that gives its id")
    if isinstance(ids, Missing):
        return unverified(ids.reason)
    actual = ids.get(token) if isinstance(token, str) else None
    if actual != expected:
        return failed(
            f"{source.file} has image_token {_shown(token)}, which is {actual} in tokenizer.json; the image token of config.json is {expected}",
        )
    return passed(f"{source.file} has image_token {_shown(token)}, token {actual} as in config.json")


def _judge_others(found: Processor) -> Finding:
    """Fields that nobody here knows may change what a picture becomes: they are named, and the file is not verified."""
    unknown = [
        f"{s.file} {field} {_shown(s.fields[field])}"
        for s in (*found.sources, found.tokens)
        for field in s.fields
        if field not in _KNOWN
    ]
    if unknown:
        return unverified(f"unknown fields: {'; '.join(unknown)}. Remove those that transformers does not read either.")
    return passed("there are no unknown fields")
