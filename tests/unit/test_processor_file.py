"""`preprocess.processor` and `preprocess.constants`: every field of the checkpoint's processor files, in both forms that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verifier.checks.processor import CASES
from verifier.checks.registry import CHECKS
from verifier.core import upstream
from verifier.core.types import CheckResult
from verifier.families.checkpoint import EMBEDDED, Checkpoint
from verifier.families.conventions import EXECUTORCH_LLAVA, OPTIMUM, Convention
from verifier.families.llava.geometry import CLIP_MEAN, CLIP_STD
from verifier.families.pixels.processor import DEFAULTS, ImageFields, find_processor
from verifier.families.pixels.published import published_samples
from verifier.families.registry import open_checkpoint
from verifier.families.samples import PublishedAnswer, Sample

Fields = dict[str, Any]
SOUND: Fields = json.loads((EMBEDDED / "processor_config.json").read_text())
IMAGE: Fields = SOUND["image_processor"]
PUBLISHED_IMAGE: Fields = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
"""`preprocessor_config.json` as CLIP's processor of transformers 4 wrote it, and the published 7B has it."""
PUBLISHED_TOKENS: Fields = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}


def _checkpoint(folder: Path, nested: Fields | None, plain: Fields | None = None) -> Checkpoint:
    """llava_tiny with other processor files."""
    for name, fields in (("processor_config.json", nested), ("preprocessor_config.json", plain)):
        if fields is not None:
            (folder / name).write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_bytes((EMBEDDED / "tokenizer.json").read_bytes())
    return replace(open_checkpoint(EMBEDDED), directory=folder)


def _run(
    check_id: str,
    checkpoint: Checkpoint,
    published: tuple[PublishedAnswer, ...] = (),
    convention: Convention = EXECUTORCH_LLAVA,
) -> list[CheckResult]:
    check = next(c for c in CHECKS if c.id == check_id)
    pictures = SimpleNamespace(processor=find_processor(checkpoint.directory), mean=CLIP_MEAN, std=CLIP_STD)
    evidence: Any = SimpleNamespace(
        geometry=checkpoint.geometry,
        pictures=pictures,
        published=published,
        subjects=None,
        convention=convention,
    )
    return check.results(evidence)


def _verdicts(checkpoint: Checkpoint) -> dict[str, CheckResult]:
    """Both checks by case; what was not a pass."""
    results = _run("preprocess.processor", checkpoint)
    assert tuple(r.case for r in results) == CASES
    return {r.case: r for r in (*results, *_run("preprocess.constants", checkpoint)) if r.verdict != "pass"}


FORMS = {
    "transformers 5": (SOUND, None),
    "the published 7B": (PUBLISHED_TOKENS, PUBLISHED_IMAGE),
    "before processor_config.json": (None, PUBLISHED_IMAGE),
    "bare numbers for sizes": (None, PUBLISHED_IMAGE | {"size": 336, "crop_size": 336}),
    "CLIPFeatureExtractor": (
        None,
        {k: v for k, v in PUBLISHED_IMAGE.items() if k != "image_processor_type"}
        | {"feature_extractor_type": "CLIPFeatureExtractor"},
    ),
    "fast": (
        PUBLISHED_TOKENS,
        IMAGE
        | {
            "image_processor_type": "LlavaImageProcessorFast",
            "data_format": "channels_first",
            "default_to_square": False,
            "device": None,
            "disable_grouping": None,
            "pad_size": None,
            "input_data_format": None,
            "return_tensors": None,
        },
    ),
    "the sizes alone": (None, {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    "both, alike": (SOUND, IMAGE),
    "padded, height and width": (SOUND | {"image_processor": IMAGE | {"size": {"height": 336, "width": 336}}}, None),
    "padded, not cropped": (SOUND | {"image_processor": IMAGE | {"do_center_crop": False}}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_passes(tmp_path: Path, form: str) -> None:
    """And says by which file, or that transformers takes a default."""
    assert _verdicts(_checkpoint(tmp_path, *FORMS[form])) == {}


@pytest.mark.parametrize("form", ["transformers 5", "the published 7B"])
@pytest.mark.parametrize(
    ("field", "value", "case"),
    [
        ("resample", 0, "resample"),
        ("resample", 2, "resample"),
        ("resample", True, "resample"),
        ("resample", "bicubic", "resample"),
        ("do_resize", False, "do_resize"),
        ("do_rescale", False, "do_rescale"),
        ("do_normalize", False, "do_normalize"),
        ("do_convert_rgb", False, "do_convert_rgb"),
        ("rescale_factor", 1 / 127.5, "rescale_factor"),
        ("rescale_factor", "1/255", "rescale_factor"),
        ("size", {"shortest_edge": 224}, "size"),
        ("size", {"longest_edge": 336}, "size"),
        ("size", {"height": 336, "width": 224}, "size"),
        ("size", "large", "size"),
        ("crop_size", {"height": 224, "width": 224}, "crop_size"),
        ("crop_size", 384, "crop_size"),
        ("image_mean", [0.5, 0.5, 0.5], "program"),
        ("image_std", [0.2, 0.2, 0.2], "program"),
        ("image_std", 0.26, "program"),
        ("image_processor_type", "SiglipImageProcessor", "image_processor_type"),
        ("do_pad", "yes", "do_pad"),
    ],
)
def test_every_field_that_differs_fails_by_name(
    tmp_path: Path, form: str, field: str, value: object, case: str
) -> None:
    """The field, what the file has, and what the program does."""
    nested, plain = FORMS[form]
    if plain is None:
        assert nested is not None
        nested = nested | {"image_processor": nested["image_processor"] | {field: value}}
    else:
        plain = plain | {field: value}
    wrong = _verdicts(_checkpoint(tmp_path, nested, plain))
    assert case in wrong and {r.verdict for r in wrong.values()} == {"fail"}
    assert f"has {field} {json.dumps(value)}" in wrong[case].message
    assert wrong[case].step == "mapping"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 16),
        ("num_additional_image_tokens", 0),
        ("vision_feature_select_strategy", "full"),
        ("image_seq_length", 577),
        ("image_token", "<picture>"),
        ("image_token", 7),
    ],
)
def test_token_fields_agree_with_the_model(tmp_path: Path, field: str, value: object) -> None:
    """575 slots for 576 features begin here."""
    wrong = _verdicts(_checkpoint(tmp_path, SOUND | {field: value}))
    assert set(wrong) == {field}
    assert wrong[field].verdict == "fail" and json.dumps(value) in wrong[field].message


def test_pictures_that_are_squashed_fail(tmp_path: Path) -> None:
    """Height and width without padding; the program keeps the ratio."""
    plain = PUBLISHED_IMAGE | {"size": {"height": 336, "width": 336}, "do_center_crop": False}
    assert "size" in _verdicts(_checkpoint(tmp_path, PUBLISHED_TOKENS, plain))


def test_frames_that_are_not_square_fail(tmp_path: Path) -> None:
    """Neither cropped nor padded. CLIP's processor knows no padding to a square: its do_pad does not help."""
    for index, more in enumerate(({}, {"do_pad": True})):
        (folder := tmp_path / str(index)).mkdir()
        plain = PUBLISHED_IMAGE | {"do_center_crop": False} | more
        assert set(_verdicts(_checkpoint(folder, PUBLISHED_TOKENS, plain))) == {"do_center_crop"}


def test_a_size_that_is_missing_is_what_transformers_takes(tmp_path: Path) -> None:
    """224, which is another frame."""
    plain = {k: v for k, v in PUBLISHED_IMAGE.items() if k != "size"}
    wrong = _verdicts(_checkpoint(tmp_path, PUBLISHED_TOKENS, plain))
    assert set(wrong) == {"size"}
    assert 'has no size, for which transformers takes {"shortest_edge": 224}' in wrong["size"].message


def test_token_fields_that_are_missing_are_not_wrong(tmp_path: Path) -> None:
    """The program does not read them; that transformers then counts another number is said."""
    tokens = {k: v for k, v in PUBLISHED_TOKENS.items() if k != "num_additional_image_tokens"}
    checkpoint = _checkpoint(tmp_path, tokens, PUBLISHED_IMAGE)
    assert _verdicts(checkpoint) == {}
    said = next(r for r in _run("preprocess.processor", checkpoint) if r.case == "num_additional_image_tokens")
    assert "transformers then counts 575 tokens of an image, the program gives 576" in said.message


@pytest.mark.parametrize(
    ("nested", "plain"),
    [
        (SOUND, IMAGE | {"resample": 2}),
        (SOUND | {"image_processor": IMAGE | {"resample": 2}}, IMAGE),
    ],
    ids=["the file that older programs read", "the file that transformers reads"],
)
def test_two_files_that_contradict_each_other_fail(tmp_path: Path, nested: Fields, plain: Fields) -> None:
    """Whichever is wrong is named."""
    wrong = _verdicts(_checkpoint(tmp_path, nested, plain))
    assert set(wrong) == {"resample"}
    assert wrong["resample"].message.startswith(
        "preprocessor_config.json" if nested is SOUND else "processor_config.json"
    )


@pytest.mark.parametrize("field", ["do_flip", "pad_size", "do_image_splitting", "auto_map"])
def test_fields_that_nobody_knows_are_named(tmp_path: Path, field: str) -> None:
    """Not verified, rather than passed over or called wrong."""
    wrong = _verdicts(_checkpoint(tmp_path, SOUND | {"image_processor": IMAGE | {field: True}}))
    assert {case: r.verdict for case, r in wrong.items()} == {"other fields": "error"}
    assert f"{field} true" in wrong["other fields"].message


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: None,
        lambda folder: (folder / "processor_config.json").write_text("{"),
        lambda folder: (folder / "processor_config.json").write_text('{"image_processor": 3}'),
        lambda folder: (folder / "processor_config.json").write_text(json.dumps(PUBLISHED_TOKENS)),
        lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
    ],
    ids=["none", "not JSON", "no object", "tokens alone", "a list"],
)
def test_a_processor_that_cannot_be_read_is_an_error(tmp_path: Path, write: Callable[[Path], object]) -> None:
    """Nothing is compared, nothing passes."""
    write(tmp_path)
    wrong = _verdicts(replace(open_checkpoint(EMBEDDED), directory=tmp_path))
    assert set(wrong) == {*CASES, "program"}
    assert {r.verdict for r in wrong.values()} == {"error"}


@pytest.mark.parametrize(
    ("form", "case", "does"),
    [("transformers 5", "do_pad", "pads pictures to a square"), ("the published 7B", "do_center_crop", "crops")],
)
def test_what_differs_by_design_is_named_with_its_cost(tmp_path: Path, form: str, case: str, does: str) -> None:
    """One exception for either form; it stands in the result, and from there in every report."""
    published = (PublishedAnswer("wide", 10.25, True), PublishedAnswer("tall", -3.0, False))
    results = _run("preprocess.processor", _checkpoint(tmp_path, *FORMS[form]), published)
    named = {r.case: r.exception for r in results if r.exception}
    assert list(named) == [case]
    assert does in named[case]
    assert "2 golden pictures that are not square (wide, tall)" in named[case]
    assert "-3.0 to 10.2 dB" in named[case] and "1 of 2 captions unchanged" in named[case]


def test_an_app_frames_pictures_for_a_program_of_pixels(tmp_path: Path) -> None:
    """What differs by design is this verification's then, and not the program's."""
    checkpoint = _checkpoint(tmp_path, SOUND)
    (named,) = (r.exception for r in _run("preprocess.processor", checkpoint, (), OPTIMUM) if r.exception)
    assert "the program takes pixels as an app frames them" in named


def test_cost_that_was_not_measured_is_said(tmp_path: Path) -> None:
    """No golden picture, or some checks alone."""
    (named,) = (r.exception for r in _run("preprocess.processor", _checkpoint(tmp_path, SOUND)) if r.exception)
    assert "The cost was not measured" in named


def test_pictures_of_the_published_processor(tmp_path: Path) -> None:
    """A few that are not square, spread over the set, one of a large model; none of a processor that fails anyway."""
    from verifier.families.llava.preprocess import prepare_image
    from verifier.families.pixels.image_file import read_image
    from verifier.golden.records import load_golden

    checkpoint = open_checkpoint(EMBEDDED)
    golden = load_golden(EMBEDDED, checkpoint.sha256).images
    prompt: Any = None
    samples = [Sample(image, prepare_image(read_image(image.path)).numpy(), prompt) for image in golden]
    several = published_samples(checkpoint, samples, large=False)
    assert len(several) == 5
    assert all(s.pixels is not None and s.pixels.shape == (1, 3, 336, 336) for s in several)
    assert all(s.image.shape != (3, 336, 336) or "odd" in s.golden.name for s in several)
    assert len(published_samples(checkpoint, samples, large=True)) == 1
    squashed = IMAGE | {"size": {"height": 336, "width": 336}, "do_pad": False, "do_center_crop": False}
    other = _checkpoint(tmp_path, SOUND | {"image_processor": squashed})
    assert published_samples(other, samples, large=False) == []


def test_defaults_are_those_of_transformers() -> None:
    """Of both classes that checkpoints of this model have."""
    for processor in (upstream.CLIP_IMAGE_PROCESSOR, upstream.LLAVA_IMAGE_PROCESSOR):
        made = processor.resolve()()
        for field, expected in DEFAULTS.items():
            actual = getattr(made, field)
            if field in ("size", "crop_size"):
                actual = {edge: length for edge, length in dict(actual).items() if length is not None}
            elif field in ("image_mean", "image_std"):
                actual = list(actual)
            assert (actual or False) == (expected or False), field


def test_unknown_framings_have_no_published_pixels() -> None:
    """The four that a file can say."""
    said = {
        "pad": {"do_pad": True},
        "crop": {"image_processor_type": "CLIPImageProcessor", "do_pad": True},
        "squash": {"size": {"height": 336, "width": 336}},
        "other": {"do_center_crop": False},
    }
    assert {name: ImageFields("x", fields).framing for name, fields in said.items()} == {name: name for name in said}
