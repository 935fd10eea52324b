"""The apps' picture paths: equal to what their libraries made, where those could be run, and to their documented geometry elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verifier.commands import image as image_util
from verifier.core.errors import ImageError, UsageError
from verifier.families.checkpoint import EMBEDDED
from verifier.families.pixels.apps.app import Frame
from verifier.families.pixels.apps.registry import APPS, app_named, frame_of
from verifier.families.pixels.apps.scaling import Pixels, draw_into_square, resize_as_skia, resize_as_stb
from verifier.families.pixels.processor import find_processor

RECORDED = Path(__file__).parents[1] / "apps" / "recorded.npz"
WAYS: dict[str, Callable[[Pixels, int, int], Pixels]] = {"stb": resize_as_stb, "skia": resize_as_skia}
SIDE = 336


def _source(name: str) -> Pixels:
    """The two pictures of tests/apps/README.md."""
    if name == "noise":
        return np.random.default_rng(7).integers(0, 256, (67, 41, 3)).astype(np.uint8)
    photo = Image.open(EMBEDDED / "images" / "photo_coffee.jpg").convert("RGB")
    return np.asarray(photo.resize((120, 80), Image.Resampling.BOX))


@pytest.fixture
def frame() -> Frame:
    """That of llava_tiny, with its processor."""
    return frame_of(SIDE, find_processor(EMBEDDED))


@pytest.mark.parametrize("key", sorted(np.load(RECORDED).files))
def test_resizing_equals_the_recorded_library(key: str) -> None:
    """To one step of 255, shrunk, enlarged, squashed, and at the same size."""
    library, source, _ = key.split("_")
    expected = np.load(RECORDED)[key]
    actual = WAYS[library](_source(source), expected.shape[1], expected.shape[0])
    assert int(np.abs(actual.astype(int) - expected).max()) <= 1


def test_stb_blurs_a_picture_that_keeps_its_size() -> None:
    """A point of light becomes (1, 16, 1) / 18 in both directions: Mitchell's filter, as for a picture that is shrunk."""
    picture = np.zeros((5, 5, 3), np.uint8)
    picture[2, 2] = 252
    made = resize_as_stb(picture, 5, 5)[..., 0]
    assert (made[2, 2], made[2, 1], made[1, 1]) == (199, 12, 1)


def test_skia_leaves_out_what_lies_between_when_it_shrinks() -> None:
    """Four pixels of 64 are mixed: a bright line between them is not seen at all."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 5] = 255
    assert resize_as_skia(picture, 8, 8).max() == 0
    assert draw_into_square(picture, 8).max() > 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 225), (336, 189)), ((400, 300), (336, 252)), ((229, 336), (229, 336)), ((336, 335), (336, 335))],
)
def test_the_cpp_example_cuts_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """16:9 becomes an odd 189; the others feed squares."""
    assert APPS["cpp"].size(*size, SIDE) == expected
    assert {APPS[name].size(*size, SIDE) for name in APPS if name != "cpp"} == {(SIDE, SIDE)}


@pytest.mark.parametrize("name", APPS)
def test_an_app_feeds_bytes_of_the_size_that_it_says(name: str, frame: Frame) -> None:
    """uint8 [3, h, w], whatever the shape of the picture."""
    picture = np.random.default_rng(1).integers(0, 256, (90, 200, 3)).astype(np.uint8)
    made = APPS[name].picture(picture, frame)
    width, height = APPS[name].size(200, 90, SIDE)
    assert (made.dtype, made.shape) == (np.uint8, (3, height, width))


def test_ios_crops_the_middle_and_android_keeps_all(frame: Frame) -> None:
    """Of a picture whose ends are red."""
    picture = np.zeros((336, 672, 3), np.uint8)
    picture[:, :160, 0] = picture[:, -160:, 0] = 255
    assert APPS["ios"].picture(picture, frame).max() == 0
    assert APPS["android"].picture(picture, frame)[0, :, 0].min() == 255


def test_padding_is_the_mean_colour_not_black(frame: Frame) -> None:
    """The original LLaVA's, and this checkpoint's processor, which pads, too."""
    picture = np.full((100, 336, 3), 255, np.uint8)
    made = {name: tuple(int(v) for v in APPS[name].picture(picture, frame)[:, 0, 0]) for name in ("hf", "original")}
    assert made == {"hf": (122, 116, 104), "original": (122, 116, 104)}


@pytest.mark.parametrize(("name", "top"), [("cpp", 255), ("android", 255), ("ios", 0), ("hf", 0), ("original", 255)])
def test_who_turns_a_photo_upright(name: str, top: int, frame: Frame, tmp_path: Path) -> None:
    """A square whose upper half is white, to be turned upside down: stb, BitmapFactory and LLaVA's own loader know no orientation tag."""
    pixels = np.zeros((336, 336, 3), np.uint8)
    pixels[:168] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert int(APPS[name].picture(tmp_path / "turned.png", frame)[0, 0, 168]) == top


@pytest.mark.parametrize(("name", "expected"), [("android", 200), ("ios", 100), ("hf", 200), ("original", 200)])
def test_half_transparent_pixels(name: str, expected: int, frame: Frame) -> None:
    """iOS blends them on black, the others drop the alpha; the C++ example feeds it as a fourth channel."""
    picture = np.full((336, 336, 4), 200, np.uint8)
    picture[..., 3] = 128
    assert abs(int(APPS[name].picture(picture, frame)[0, 100, 100]) - expected) <= 1
    with pytest.raises(ImageError):
        APPS["cpp"].picture(picture, frame)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_the_cpp_example_feeds_the_channels_of_the_file(mode: str, frame: Frame, tmp_path: Path) -> None:
    """A grey picture has one, and the program takes three."""
    Image.new(mode, (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="as many channels as the file has"):
        APPS["cpp"].picture(tmp_path / "x.png", frame)


@pytest.mark.parametrize(
    "given", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(given: np.ndarray, frame: Frame) -> None:
    """Another dtype, another shape, nothing."""
    with pytest.raises(ImageError):
        APPS["android"].picture(given, frame)


def test_a_processor_that_does_not_fit_the_tower_is_named() -> None:
    """Frames of 336 for a tower of 112: no pixels, and a reason."""
    small = frame_of(112, find_processor(EMBEDDED))
    with pytest.raises(ImageError, match=r"(?s)larger picture than its tower takes.*336 x 336.*112 x 112"):
        APPS["hf"].picture(EMBEDDED / "images" / "square_0.png", small)


def test_a_checkpoint_without_processor_has_no_hf_path() -> None:
    """It says so."""
    with pytest.raises(ImageError, match="no processor file"):
        APPS["hf"].picture(np.zeros((4, 4, 3), np.uint8), Frame(SIDE))


def test_an_app_that_is_not_known_is_refused() -> None:
    """With those that are."""
    with pytest.raises(UsageError, match="android"):
        app_named("palm")


def test_image_util_writes_what_an_app_feeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: Frame, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m verifier.image_util PICTURE --as android`, into the working folder."""
    monkeypatch.chdir(tmp_path)
    source = EMBEDDED / "images" / "tall_0.png"
    assert image_util.main([str(source), "--as", "android"]) == 0
    assert np.array_equal(np.load(tmp_path / "tall_0.android.npy"), APPS["android"].picture(source, frame))
    assert "as Android LlamaDemo feeds it" in capsys.readouterr().out
    assert image_util.main([str(source), "--as", "palm"]) == 2
    assert image_util.main([]) == 2


def test_a_picture_of_which_nothing_is_left_is_refused() -> None:
    """In a small frame the shorter side is cut to nothing."""
    with pytest.raises(ImageError, match="nothing is left"):
        APPS["cpp"].picture(np.zeros((1, 160, 3), np.uint8), Frame(28))
    assert all(min(size) for size in APPS["cpp"].usual(28))


@pytest.mark.parametrize("name", ["photo_coffee.jpg", "tall_1.png", "small_97x131.png", "odd_337x251.png"])
def test_the_original_pads_as_hugging_faces_processor_of_llava(name: str, frame: Frame) -> None:
    """Two programs, the same pixels: llava_tiny's processor file asks for the original's padding."""
    source = EMBEDDED / "images" / name
    assert np.array_equal(APPS["original"].picture(source, frame), APPS["hf"].picture(source, frame))


@pytest.mark.parametrize("name", ["hf", "original", "android", "ios"])
def test_a_square_of_the_frames_size_is_left_as_it_is(name: str, frame: Frame) -> None:
    """Nothing is resized, rounded or turned."""
    picture = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    assert np.array_equal(APPS[name].picture(picture, frame), picture.transpose(2, 0, 1))
