"""`preprocess.pixels`, `.sizes`, `.files` and `.image`: every wrong way to frame or read a picture fails, the right one passes with room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from verifier.checks.registry import CHECKS
from verifier.core.types import CheckResult, Prompt
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava import preprocess
from verifier.families.llava.preprocess import LlavaPixels, frame_size, prepare_image, to_tensor
from verifier.families.llava.vision import VisionEncoder
from verifier.families.pixels import image_file
from verifier.families.pixels.processor import find_processor
from verifier.families.pixels.resampling import FILTERS, resample
from verifier.families.registry import open_checkpoint
from verifier.families.samples import Sample
from verifier.golden.records import GoldenImage
from verifier.measures.drawing import FILES, drawn, save_turned
from verifier.measures.evidence import Subjects
from verifier.measures.pictures import DRAWN, DRAWN_CASES, FILE_CASES, frame_sizes
from verifier.measures.pixels import measure_pictures

NOT_RESIZED = DRAWN_CASES[0]
Way = Callable[[Image.Image], Tensor]


def _results(check_id: str, sample: Sample | None = None, **changed: Any) -> list[CheckResult]:
    """What a check says of pictures that are measured now: a golden one, which is the user's too, drawn ones, or files."""
    geometry = open_checkpoint(EMBEDDED).geometry
    wanted = {"square": False, "normalize": VisionEncoder(geometry).normalize} | changed
    pictures = measure_pictures(
        () if sample is None else (sample,),
        sample,
        find_processor(EMBEDDED),
        LlavaPixels(geometry.vision.image_px),
        with_drawn=check_id == "preprocess.sizes",
        with_files=check_id == "preprocess.files",
        **wanted,
    )
    names = () if sample is None else (sample.golden.name,)
    evidence: Any = SimpleNamespace(geometry=geometry, pictures=pictures, subjects=Subjects(names, (), ()))
    return next(c for c in CHECKS if c.id == check_id).results(evidence)


def _failed(monkeypatch: pytest.MonkeyPatch, way: Way) -> set[str]:
    """The sizes that fail if pictures are prepared this way."""
    monkeypatch.setattr(preprocess, "prepare_image", lambda image, **_: way(image))
    results = _results("preprocess.sizes")
    assert {r.verdict for r in results} <= {"pass", "fail"}
    return {r.case for r in results if r.verdict == "fail"}


def _resized(image: Image.Image, kind: int) -> np.ndarray:
    rgb = image.convert("RGB")
    return np.asarray(rgb.resize(frame_size(*rgb.size), kind))


def test_every_size_passes_with_room() -> None:
    """The sound reader and filter are exact but for fp32: a hundredth of the step that is allowed."""
    results = _results("preprocess.sizes")
    assert {r.verdict for r in results} == {"pass"}
    assert tuple(r.case for r in results) == DRAWN_CASES
    assert max(r.measured["worst_steps"] for r in results) < 0.01


def test_static_programs_pass_too() -> None:
    """Padded by the host."""
    assert {r.verdict for r in _results("preprocess.sizes", square=True)} == {"pass"}


@pytest.mark.parametrize("kind", [kind for kind in FILTERS if kind != 3], ids=FILTERS.get)
def test_every_other_filter_fails_at_every_size(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """Nearest, box, bilinear, Hamming, Lanczos, wherever there is something to resize."""
    failed = _failed(monkeypatch, lambda image: to_tensor(Image.fromarray(_resized(image, kind))))
    assert failed == set(DRAWN_CASES) - {NOT_RESIZED}


def test_a_filter_that_does_not_average_fails_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bicubic without antialiasing (OpenCV's, PyTorch's by default): its kernel is another one where it grows, too."""

    def plain(image: Image.Image) -> Tensor:
        width, height = frame_size(*image.size)
        pixels = to_tensor(image.convert("RGB"))[None].float()
        grown = functional.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False)
        return grown[0].round().clamp(0, 255).to(torch.uint8)

    assert _failed(monkeypatch, plain) == set(DRAWN_CASES) - {NOT_RESIZED}


def _gamma(image: Image.Image) -> Tensor:
    """Resized in linear light, as careful programs do."""
    width, height = frame_size(*image.size)
    light = (np.asarray(image.convert("RGB"), np.float32) / 255) ** 2.2
    channels = [np.asarray(Image.fromarray(light[..., c]).resize((width, height), 3)) for c in range(3)]
    pixels = np.clip(np.stack(channels, -1), 0, 1) ** (1 / 2.2) * 255
    return to_tensor(Image.fromarray(pixels.round().astype(np.uint8)))


def test_resizing_in_linear_light_fails_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is something to resize."""
    assert _failed(monkeypatch, _gamma) == set(DRAWN_CASES) - {NOT_RESIZED}


GREY = {case for case in DRAWN_CASES if "grey" in case}


@pytest.mark.parametrize(
    ("change", "passing"),
    [
        (lambda pixels: pixels.flip(0), GREY),
        (lambda pixels: pixels[[0, 2, 1]], GREY),
        (lambda pixels: pixels.roll(1, 1), set()),
        (lambda pixels: pixels.roll(1, 2), set()),
        (lambda pixels: pixels.flip(2), set()),
        (lambda pixels: ((pixels / 255) ** 1.1 * 255).round().to(torch.uint8), set()),
    ],
    ids=["BGR", "RBG", "one row down", "one column right", "mirrored", "gamma"],
)
def test_changed_pixels_fail_at_every_size(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], passing: set[str]
) -> None:
    """But for an exchange of channels in grey pictures, which is none."""
    assert _failed(monkeypatch, lambda image: change(prepare_image(image))) == set(DRAWN_CASES) - passing


def test_alpha_that_is_blended_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's loader drops it."""

    def blended(image: Image.Image) -> Tensor:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return prepare_image(Image.alpha_composite(white, image.convert("RGBA")))

    assert _failed(monkeypatch, blended) == {case for case in DRAWN_CASES if "alpha" in case or "palette" in case}


@pytest.mark.parametrize(
    "size",
    [lambda w, h: (336, 336), lambda w, h: (w // 2 * 2 or 2, h // 2 * 2 or 2), lambda w, h: (max(2, w - 2), h)],
    ids=["squashed", "not resized", "two columns less"],
)
def test_another_frame_fails(monkeypatch: pytest.MonkeyPatch, size: Callable[[int, int], tuple[int, int]]) -> None:
    """For every picture that is not square."""

    def framed(image: Image.Image) -> Tensor:
        rgb = image.convert("RGB")
        width, height = size(*frame_size(*rgb.size))
        return to_tensor(rgb.resize((width, height), 3))

    failed = _failed(monkeypatch, framed)
    if size(100, 200) != (100, 200):
        assert failed >= {case for case, (w, h, _) in zip(DRAWN_CASES, DRAWN, strict=True) if w != h} - {"2 x 300"}
    else:
        assert failed == set()


def _framed(image: Image.Image, *, up: int = 0, colour: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """The picture on a square of a colour, `up` pixels too high where there is room."""
    inner = prepare_image(image)
    top, left = (336 - inner.shape[1]) // 2, (336 - inner.shape[2]) // 2
    frame = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, 336, 336)
    top = max(0, top - up)
    frame[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return frame


def test_6_margins_filled_with_another_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean colour around every picture that is not square; squares have no margin."""
    failed = _failed(monkeypatch, lambda image: _framed(image, colour=(122, 116, 104)))
    assert failed == {case for case, (w, h, _) in zip(DRAWN_CASES, DRAWN, strict=True) if w != h}


def test_7_odd_margin_loses_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture sits one pixel too high wherever there is a margin above it."""
    failed = _failed(monkeypatch, lambda image: _framed(image, up=1))
    assert failed == {case for case, (w, h, _) in zip(DRAWN_CASES, DRAWN, strict=True) if w > h}


def test_frames_have_even_sides_next_to_the_ratio() -> None:
    """Both, where the ratio lies halfway between."""
    assert frame_sizes(640, 480, 336) == ((336, 252),)
    assert frame_sizes(480, 641, 336) == ((252, 336),)
    assert frame_sizes(1000, 1, 336) == ((336, 2),)
    assert frame_sizes(336, 251, 336) == ((336, 250), (336, 252))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_fail(value: float) -> None:
    """Neither is inside a limit, in the encoder's constants or in the picture itself."""
    vision = VisionEncoder(open_checkpoint(EMBEDDED).geometry)
    vision.mean = vision.mean * value
    assert {r.verdict for r in _results("preprocess.sizes", normalize=vision.normalize)} == {"fail"}
    sample = _sample(EMBEDDED / "images" / "wide_0.png")
    broken = replace(sample, image=np.full(sample.image.shape, value, np.float32))
    for check_id in ("preprocess.pixels", "preprocess.image"):
        assert [r.verdict for r in _results(check_id, broken)] == ["fail"]


def test_half_a_picture_fails() -> None:
    """The left half, in the frame of a whole one."""
    sample = _sample(EMBEDDED / "images" / "wide_0.png")
    (result,) = _results("preprocess.pixels", replace(sample, image=sample.image[:, :, :168]))
    assert result.verdict == "fail"
    assert result.message.startswith("the pixels are 168 x ")


def _sample(path: Path) -> Sample:
    golden = GoldenImage(path.stem, path, "", "", "", (), (), "")
    return Sample(golden, prepare_image(image_file.read_image(path)).numpy(), Prompt((), ()))


@pytest.mark.parametrize("check_id", ["preprocess.pixels", "preprocess.image"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_63_rotation_tag_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str, check_id: str) -> None:
    """The reference reads the file itself, with Hugging Face's loader: a fault of our reader is seen."""
    path = tmp_path / f"photo{suffix}"
    for tag in (1, 6, 3):
        save_turned(drawn(97, 131), tag, path)
        assert [r.verdict for r in _results(check_id, _sample(path))] == ["pass"]
        with monkeypatch.context() as patched:
            patched.setattr(image_file, "upright", lambda image: image)
            broken = _sample(path)
        assert [r.verdict for r in _results(check_id, broken)] == (["pass"] if tag == 1 else ["fail"])


def test_user_image_that_was_not_given_is_an_error() -> None:
    """No vacuous pass."""
    assert [r.verdict for r in _results("preprocess.image")] == ["error"]


def test_files_pass() -> None:
    """Every kind that can be written, by the sound reader."""
    assert tuple(FILES) == FILE_CASES
    results = _results("preprocess.files")
    assert [(r.case, r.verdict) for r in results] == [(case, "pass") for case in FILE_CASES]


@pytest.mark.parametrize(
    ("name", "reader", "broken"),
    [
        (
            "upright",
            lambda image: image,  # TIFF is turned by Pillow's reader itself
            [c for c in FILE_CASES if "orientation" in c and not c.endswith(" 1") and not c.startswith("TIFF")],
        ),
        (
            "upright",
            lambda image: image.transpose(Image.Transpose.ROTATE_180),
            [c for c in FILE_CASES if not c.endswith("orientation 3")],
        ),
        (
            "to_rgb",
            lambda image, _where: Image.alpha_composite(
                Image.new("RGBA", image.size, (255, 255, 255, 255)), image.convert("RGBA")
            ).convert("RGB"),
            [c for c in FILE_CASES if "alpha" in c or "transparency" in c],
        ),
        ("to_rgb", lambda image, _where: image.convert("L").convert("RGB"), None),
    ],
    ids=["tag ignored", "turned once more", "alpha blended", "grey"],
)
def test_files_read_otherwise_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, reader: Callable[..., Image.Image], broken: list[str] | None
) -> None:
    """By the kinds that it concerns."""
    monkeypatch.setattr(image_file, name, reader)
    failed = [r.case for r in _results("preprocess.files") if r.verdict == "fail"]
    assert failed == broken if broken is not None else len(failed) > len(FILE_CASES) / 2


def test_a_file_that_the_reader_refuses_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's loader reads it."""
    monkeypatch.setattr(image_file, "FORMATS", ("PNG",))
    failed = {r.case for r in _results("preprocess.files") if r.verdict == "fail"}
    assert failed == {case for case in FILE_CASES if not case.startswith("PNG")}


@pytest.mark.parametrize("kind", FILTERS, ids=FILTERS.get)
def test_the_definition_of_a_filter_is_pillows(kind: int) -> None:
    """Grown, shrunk and far shrunk, in one of the two orders of passes: to the last bit."""
    for width, height in [(37, 37), (97, 131), (640, 480), (1001, 333), (333, 1001), (2016, 12), (2, 300)]:
        image = drawn(width, height)
        size = frame_size(width, height)
        expected = np.asarray(image.resize(size, kind))
        made = [resample(np.asarray(image), *size, kind, rows_first=first) for first in (True, False)]
        assert any(np.array_equal(one, expected) for one in made), (width, height)
