"""Images become 336 px frames, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verifier.commands import image as image_util
from verifier.core.errors import ImageError
from verifier.families.llava.preprocess import frame_size, prepare_image
from verifier.families.pixels.image_file import read_image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((336, 336), (336, 336)),
        ((672, 336), (336, 168)),
        ((337, 251), (336, 250)),
        ((10, 1000), (4, 336)),
        ((1, 1), (336, 336)),
    ],
)
def test_frame_size_is_even_and_within_the_frame(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The longer side is 336, the other even: an odd margin would shift the picture by half a pixel."""
    assert frame_size(*size) == expected


def test_prepare_image_keeps_a_frame_as_it_is() -> None:
    """No resampling where none is due."""
    pixels = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    assert torch.equal(prepare_image(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1))


def test_prepare_image_pads_with_black_for_static_programs() -> None:
    """`square` centres the picture on black."""
    image = prepare_image(Image.new("RGB", (336, 168), (9, 9, 9)), square=True)
    assert image.shape == (3, 336, 336)
    assert image[:, :84].sum() == 0
    assert (image[:, 84:252] == 9).all()


@pytest.mark.parametrize(
    ("size", "said"), [((8000, 20), "too narrow"), ((20, 8000), "too narrow"), ((9000, 9000), "too large")]
)
def test_read_image_refuses_impossible_sizes(tmp_path: Path, size: tuple[int, int], said: str) -> None:
    """The message gives the size and the bound."""
    path = tmp_path / "image.png"
    Image.new("RGB", size).save(path)
    with pytest.raises(ImageError, match=said) as caught:
        read_image(path)
    assert f"{size[0]} x {size[1]}" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_read_image_refuses_what_is_not_an_image(tmp_path: Path, content: bytes) -> None:
    """Empty, text, and a PNG that ends too early."""
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path)


def test_one_pixel_is_an_image() -> None:
    """1 x 1 becomes a frame of one colour."""
    image = prepare_image(Image.new("RGB", (1, 1), (7, 8, 9)))
    assert image.shape == (3, 336, 336)
    assert [int(image[c].min()) for c in range(3)] == [7, 8, 9]


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_image_util_writes_what_runners_read(tmp_path: Path, suffix: str) -> None:
    """Both formats hold the prepared tensor; .npy is read without PyTorch."""
    source, out = tmp_path / "in.png", tmp_path / f"out{suffix}"
    Image.new("RGB", (100, 50), (1, 2, 3)).save(source)
    assert image_util.main(["--image-path", str(source), "--output-path", str(out)]) == 0
    stored = (
        np.load(out, allow_pickle=False) if suffix == ".npy" else next(torch.jit.load(str(out)).parameters()).numpy()
    )
    np.testing.assert_array_equal(stored, prepare_image(Image.open(source)).numpy())


def test_image_util_refuses_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong suffix is refused before anything is written."""
    assert image_util.main(["--image-path", str(tmp_path / "no.png"), "--output-path", str(tmp_path / "x.jpg")]) == 2
    assert "ends in .pt or .npy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
