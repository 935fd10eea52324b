"""Pictures that `llava_main` in C++ reads itself: the pixels of `python -m verifier.image_util`, or a refusal in words."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from PIL.PngImagePlugin import PngInfo

from tests.runners.picture_fuzz import fuzz
from verifier.commands.image import prepare_file
from verifier.core.errors import ImageError
from verifier.families.checkpoint import EMBEDDED
from verifier.families.pixels.image_file import MAX_ASPECT, MAX_PIXELS
from verifier.families.registry import open_checkpoint, open_family
from verifier.measures.drawing import FILES, ORIENTATION, TURNS, drawn, save_turned
from verifier.measures.pictures import DRAWN, DRAWN_CASES, FILE_CASES
from verifier.runner.constants import FRAME_PX, PICTURE_LIMIT_ASPECT, PICTURE_LIMIT_PIXELS
from verifier.runner.native import NativeRunner

pytestmark = pytest.mark.xdist_group("runner")
JPEG_STEPS = 6
"""Between two decoders of JPEG, behind resizing: stb_image's rounding of the cosine transform, of the colours and of the colour's doubling is
not libjpeg-turbo's. 4 were seen on 120 files, and 0.26 on average."""
JPEG_MEAN_STEPS = 0.5
JPEG_EDGE_STEPS = 40
"""Where colours are halved along rows alone (4:2:2) stb_image weighs the two last pixels of a row the wrong way round: 27 were seen."""


def _read(native: NativeRunner, path: Path) -> NDArray[np.uint8] | str:
    """What `llava_main` makes of a picture, or what it says instead, with exit status 2."""
    made = path.with_name("made.npy")
    made.unlink(missing_ok=True)
    words = [str(native.binary), f"--image_path={path}", f"--save_image={made}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 2), done.stderr
    return np.load(made) if done.returncode == 0 else done.stderr.splitlines()[0]


def _steps(native: NativeRunner, path: Path) -> NDArray[np.int64]:
    """Differences from `image_util` in steps of 255."""
    made = _read(native, path)
    assert not isinstance(made, str), made
    wanted = prepare_file(path).numpy()
    assert made.shape == wanted.shape
    return np.abs(made.astype(np.int64) - wanted)


def test_limits_and_frame_are_those_of_python() -> None:
    """The same pictures are refused, and the same frame is filled."""
    pixels = open_family(open_checkpoint()).pixels
    assert (PICTURE_LIMIT_PIXELS, PICTURE_LIMIT_ASPECT) == (MAX_PIXELS, MAX_ASPECT)
    assert pixels.prepare(Image.new("RGB", (9, 9))).shape == (3, FRAME_PX, FRAME_PX)


@pytest.mark.parametrize("case", DRAWN_CASES)
def test_png_has_the_pixels_of_image_util(native: NativeRunner, tmp_path: Path, case: str) -> None:
    """Of every shape and mode, to the last one."""
    width, height, mode = DRAWN[DRAWN_CASES.index(case)]
    if (width, height) == (3000, 3000):
        pytest.skip("nothing that 1024 px do not show, and seconds")
    drawn(width, height, mode).save(tmp_path / "a.png")
    if int(pillow_version.split(".")[0]) < 13 and height > 2 * width:
        assert _steps(native, tmp_path / "a.png").max() <= 1  # the two passes in the other order
    else:
        assert _steps(native, tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("case", [case for case in FILE_CASES if case.startswith(("JPEG", "PNG"))])
def test_kinds_and_orientations_are_read_as_image_util_reads_them(
    native: NativeRunner, tmp_path: Path, case: str
) -> None:
    """Alpha, palettes, grey, one bit; tags in EXIF and XMP."""
    FILES[case](tmp_path / "file")
    steps = _steps(native, next(tmp_path.glob("file.*")))
    assert steps.max() <= (JPEG_STEPS if case.startswith("JPEG") else 0)
    assert steps.mean() <= JPEG_MEAN_STEPS


@pytest.mark.parametrize("name", ["photo_china.jpg", "photo_flower.jpg"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_close_to_image_util(
    native: NativeRunner, tmp_path: Path, name: str, subsampling: int, progressive: bool
) -> None:
    """Photographs in every subsampling, as baseline and progressive files, upside down."""
    path = tmp_path / "a.jpg"
    with Image.open(EMBEDDED / "images" / name) as photo:
        save_turned(photo, 3, path, quality=90, subsampling=subsampling, progressive=progressive)
    steps = _steps(native, path)
    inner = steps[..., 4:-4] if subsampling == 1 else steps
    assert (inner.max() <= JPEG_STEPS, steps.max() <= JPEG_EDGE_STEPS) == (True, True), (inner.max(), steps.max())
    assert steps.mean() <= JPEG_MEAN_STEPS


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_without_colour_and_for_print(native: NativeRunner, tmp_path: Path, mode: str) -> None:
    """Grey, and Adobe's inverted CMYK."""
    drawn(120, 80).convert(mode).save(tmp_path / "a.jpg")
    assert _steps(native, tmp_path / "a.jpg").max() <= JPEG_STEPS


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(
    path: Path, depth: int, colour: int, rows: bytes, extra: bytes = b"", size: tuple[int, int] = (30, 20)
) -> None:
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), extra, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_deep_png_keeps_its_upper_bits_and_deep_grey_is_refused(native: NativeRunner, tmp_path: Path) -> None:
    """As Pillow has it: 16 bits in colour are cut to eight, in a single channel there is no rule."""
    rng = np.random.default_rng(0)
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        _png(tmp_path / "a.png", 16, colour, b"".join(b"\0" + rng.bytes(30 * 2 * channels) for _ in range(20)))
        assert _steps(native, tmp_path / "a.png").max() == 0
    _png(tmp_path / "a.png", 16, 0, b"".join(b"\0" + rng.bytes(60) for _ in range(20)))
    said = _read(native, tmp_path / "a.png")
    assert isinstance(said, str)
    assert "16 bits in one channel, expected 8" in said


def test_colour_that_a_palette_lacks_is_black(native: NativeRunner, tmp_path: Path) -> None:
    """As Pillow has it, not what memory held before."""
    rows = b"".join(b"\0" + bytes([0, 1, 2, 200] * 5) for _ in range(20))
    _png(tmp_path / "a.png", 8, 3, rows, _chunk(b"PLTE", bytes([9, 8, 7])), (20, 20))
    assert _steps(native, tmp_path / "a.png").max() == 0


def _magick(exif: bytes) -> PngInfo:
    text, info = exif.hex(), PngInfo()
    lines = "\n".join(text[at : at + 72] for at in range(0, len(text), 72))
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{lines}\n", zip=True)
    return info


def _packed_xmp(exif: bytes) -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>7</tiff:Orientation>", zip=True)
    return info


@pytest.mark.parametrize(("tag", "text"), [(5, _magick), (7, _packed_xmp)], ids=["ImageMagick", "packed XMP"])
def test_orientation_in_a_text_of_a_png(
    native: NativeRunner, tmp_path: Path, tag: int, text: Callable[[bytes], PngInfo]
) -> None:
    """ImageMagick writes EXIF as hexadecimal digits; a text may be compressed."""
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    TURNS[tag](drawn(48, 32)).save(tmp_path / "a.png", pnginfo=text(exif.tobytes()))
    with Image.open(tmp_path / "a.png") as file:
        assert ImageOps.exif_transpose(file).size == (48, 32)
    assert _steps(native, tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_truncated_file_is_refused(native: NativeRunner, tmp_path: Path, kind: str, share: float) -> None:
    """A download that broke off is no picture with a grey rest."""
    drawn(80, 60).save(tmp_path / "whole", kind)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "part").write_bytes(data[: int(len(data) * share)])
    said = _read(native, tmp_path / "part")
    assert isinstance(said, str)
    assert "it is cut off" in said


@pytest.mark.parametrize(
    ("size", "said"), [((8000, 20), "too narrow: 8000 x 20"), ((9000, 9000), "too large: 9000 x 9000")]
)
def test_impossible_sizes_are_refused_before_anything_is_decoded(
    native: NativeRunner, tmp_path: Path, size: tuple[int, int], said: str
) -> None:
    """By the header alone: the pixels are not even there."""
    _png(tmp_path / "a.png", 8, 2, b"", size=size)
    answer = _read(native, tmp_path / "a.png")
    assert isinstance(answer, str)
    assert said in answer
    with pytest.raises(ImageError):
        prepare_file(tmp_path / "a.png")


def test_bomb_is_refused(native: NativeRunner, tmp_path: Path) -> None:
    """A small picture whose data unpack to 300 MB: memory is bounded by the size that it claims."""
    _png(tmp_path / "a.png", 8, 2, bytes(300 << 20))
    answer = _read(native, tmp_path / "a.png")
    assert isinstance(answer, str)
    assert "cannot be read" in answer


def test_damaged_byte_is_found_by_its_checksum(native: NativeRunner, tmp_path: Path) -> None:
    """stb_image looks at none of them."""
    drawn(80, 60).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    said = _read(native, tmp_path / "a.png")
    assert isinstance(said, str)
    assert "a checksum is wrong" in said


@pytest.mark.parametrize(
    ("suffix", "said"),
    [(".webp", "a WebP picture"), (".gif", "a GIF picture"), (".txt", "neither a JPEG nor a PNG")],
)
def test_other_formats_are_named(native: NativeRunner, tmp_path: Path, suffix: str, said: str) -> None:
    """And the command that converts them."""
    path = tmp_path / f"a{suffix}"
    path.write_text("words") if suffix == ".txt" else drawn(48, 32).save(path)
    answer = _read(native, path)
    assert isinstance(answer, str)
    assert said in answer
    assert "python -m verifier.image_util" in answer


@pytest.mark.slow
def test_damaged_files_crash_nothing(tmp_path: Path) -> None:
    """6000 damaged pictures under AddressSanitizer and UndefinedBehaviorSanitizer: read or refused, none worse."""
    counts = fuzz(tmp_path, 6000)
    assert sum(counts.values()) == 6000
    assert min(counts.values()) > 300, counts  # both happen
