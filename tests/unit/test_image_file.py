"""Files become upright RGB pixels as Hugging Face's loader reads them, or are refused with a reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from verifier.commands import image as image_util
from verifier.core.errors import ImageError, UsageError
from verifier.export.run import calibration_images
from verifier.families.llava.preprocess import prepare_image
from verifier.families.pixels.image_file import FORMATS, list_images, read_image
from verifier.families.pixels.published import hugging_face_image
from verifier.measures.drawing import FILES, TURNS, drawn, save_turned
from verifier.measures.pictures import FILE_CASES

LOSSLESS = {".png": {}, ".webp": {"lossless": True}, ".tiff": {}}
DEEP = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_orientation_is_turned_upright(tmp_path: Path, suffix: str, tag: int) -> None:
    """The pixels are those that were stored turned, to the last one."""
    path = tmp_path / f"turned{suffix}"
    save_turned(drawn(48, 32), tag, path, **LOSSLESS[suffix])
    np.testing.assert_array_equal(read_image(path), drawn(48, 32))


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".mpo", ".avif", *LOSSLESS])
def test_files_with_a_tag_are_read_as_hugging_face_reads_them(tmp_path: Path, suffix: str, tag: int) -> None:
    """Formats with loss, too."""
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"turned{suffix}"
    save_turned(drawn(48, 32), tag, path)
    assert read_image(path).size == (48, 32)
    np.testing.assert_array_equal(read_image(path), hugging_face_image(path))


@pytest.mark.parametrize("case", FILE_CASES)
def test_every_kind_of_file_is_read_as_hugging_face_reads_it(tmp_path: Path, case: str) -> None:
    """Palettes, alpha, grey, one bit, CMYK, animations."""
    stored = FILES[case](tmp_path / "file")
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(read_image(path), hugging_face_image(path))
    assert case.startswith("JPEG") or np.array_equal(read_image(path), stored)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tiff"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    """Animated WebP and PNG, a TIFF of two pages."""
    path = tmp_path / f"two{suffix}"
    drawn(48, 32).save(path, save_all=True, append_images=[drawn(32, 48).resize((48, 32))], **LOSSLESS[suffix])
    np.testing.assert_array_equal(read_image(path), drawn(48, 32))


def _save_deep(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", lambda path: _save_deep(path, DEEP)),
        ("grey.tiff", lambda path: _save_deep(path, DEEP)),
        ("whole.tiff", lambda path: _save_deep(path, DEEP.astype(np.int32))),
        ("real.tiff", lambda path: _save_deep(path, (DEEP / 65535).astype(np.float32))),
        ("real255.tiff", lambda path: _save_deep(path, (DEEP / 257).astype(np.float32))),
        ("grey.pgm", lambda path: path.write_bytes(b"P5 30 20 65535\n" + DEEP.astype(">u2").tobytes())),
        ("grey.jp2", lambda path: _save_deep(path, DEEP)),
    ],
)
def test_what_would_be_clipped_flat_is_refused(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    """16 and 32 bits in one channel, and floating point: the mode is named, and what transformers would do."""
    write(tmp_path / name)
    with pytest.raises(ImageError, match=r"(?s)more than 8 bits a channel.*mode (I|F).*clips") as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


def test_an_image_that_would_be_clipped_is_refused_in_memory() -> None:
    """Whoever opens a file with Pillow meets the same refusal."""
    with pytest.raises(ImageError, match="more than 8 bits"):
        prepare_image(Image.fromarray(DEEP))


def _png(path: Path, color: int, channels: int) -> None:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    pixels = np.stack([DEEP] * channels, -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 30, 20, 16, color, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["colour", "grey and alpha", "alpha"])
def test_16_bits_in_several_channels_are_scaled(tmp_path: Path, color: int, channels: int) -> None:
    """Pillow takes the upper eight bits: nothing is flat, and Hugging Face has the same."""
    _png(tmp_path / "deep.png", color, channels)
    actual = np.asarray(read_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(actual[..., 0], DEEP >> 8)
    np.testing.assert_array_equal(actual, hugging_face_image(tmp_path / "deep.png"))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "AVIF" or features.check("avif")])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    """A download that broke off is no picture with a grey rest."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    drawn(80, 60).save(whole, kind)
    part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(part)


@pytest.mark.parametrize("kind", ["TGA", "ICO", "EPS", "PCX"])
def test_other_formats_are_refused_with_the_list(tmp_path: Path, kind: str) -> None:
    """Whether or not Pillow could read them: one list."""
    path = tmp_path / f"picture.{kind.lower()}"
    drawn(48, 32).save(path, kind)
    with pytest.raises(ImageError, match="PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, PPM or JPEG 2000"):
        read_image(path)


def test_a_folder_has_its_images_by_content(tmp_path: Path) -> None:
    """Upper case, no suffix, a wrong suffix: read. Notes, a folder, another format: named."""
    for name in ("a.PNG", "b", "c.jpg"):
        drawn(8, 8).save(tmp_path / name, "PNG")
    drawn(8, 8).save(tmp_path / "d.tga")
    (tmp_path / "notes.txt").write_text("P5 of a list")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "sub").mkdir()
    images, others = list_images(tmp_path)
    assert [path.name for path in images] == ["a.PNG", "b", "c.jpg"]
    assert others == (".DS_Store", "d.tga", "notes.txt", "sub")


@pytest.mark.parametrize("name", ["broken.png", "broken.webp", "broken.mpo"])
def test_a_folder_with_a_broken_image_is_refused(tmp_path: Path, name: str) -> None:
    """Left out in silence it would change the ranges that a quantized encoder gets."""
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ImageError, match=name):
        list_images(tmp_path)


def test_calibration_takes_every_format_and_names_the_rest(tmp_path: Path) -> None:
    """WebP and TIFF count; what is skipped is told."""
    for name in ("a.webp", "b.tiff", "c.jp2"):
        drawn(16, 16).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    said: list[str] = []
    assert [path.name for path in calibration_images(tmp_path, warn=said.append)] == ["a.webp", "b.tiff", "c.jp2"]
    assert len(said) == 1 and "skipped notes.txt" in said[0]


def test_too_few_calibration_images_name_what_else_there_is(tmp_path: Path) -> None:
    """A folder of HEIC photos says why it is empty."""
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UsageError, match=r"(?s)0 in .*beside IMG_1\.HEIC.*PNG, JPEG, WebP"):
        calibration_images(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_image_util_writes_a_turned_photo_upright(tmp_path: Path, suffix: str) -> None:
    """What apps are handed is the picture as people see it."""
    save_turned(drawn(48, 32), 6, tmp_path / "turned.png")
    drawn(48, 32).save(tmp_path / "upright.png")
    for name in ("turned", "upright"):
        words = ["--image-path", str(tmp_path / f"{name}.png"), "--output-path", str(tmp_path / f"{name}{suffix}")]
        assert image_util.main(words) == 0
    from verifier.runner.conversation import read_image as read_tensor

    turned, upright = (
        read_tensor(tmp_path / f"{name}{suffix}", image_util.prepare_file) for name in ("turned", "upright")
    )
    assert bool((turned == upright).all())
