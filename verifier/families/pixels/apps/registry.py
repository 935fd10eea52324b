"""The apps whose picture paths are known. Sources, as of 2026-08: github.com/pytorch/executorch at cff6f4dd and
github.com/meta-pytorch/executorch-examples at c947b033."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from verifier.core.errors import ImageError, UsageError
from verifier.families.pixels.apps.app import App, Frame, Size
from verifier.families.pixels.apps.scaling import (
    Pixels,
    draw_into_square,
    resize_as_skia,
    resize_as_stb,
    to_bytes,
)
from verifier.families.pixels.image_file import read_stored, upright
from verifier.families.pixels.processor import DEFAULTS, Processor
from verifier.families.pixels.published import hugging_face_image, normalization, published_pixels

STB_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM")
_PIL_CHANNELS = {"L": 1, "1": 1, "LA": 2, "RGBA": 4, "PA": 4}
SHAPES = ((1, 1), (4, 3), (3, 2), (16, 9), (2, 1), (20, 9), (336, 335), (168, 1))
"""Width to height of photographs, of screens, and the extremes that are read."""


def _with_alpha(picture: Image.Image) -> Pixels:
    """uint8 [h, w, 3], or [h, w, 4] if the picture may be transparent."""
    alpha = picture.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in picture.info
    return np.asarray(picture.convert("RGBA" if alpha else "RGB"), np.uint8)


def _read_with_stb(path: Path) -> Pixels:
    """`stbi_load(path, …, 0)`: as many channels as the file has, no orientation tag. The program takes three."""
    stored = read_stored(path)
    if stored.format not in STB_FORMATS and stored.format != "MPO":
        expected = ", ".join(STB_FORMATS)
        raise ImageError("stb_image does not read this format", got=stored.format, expected=expected, where=path)
    channels = _PIL_CHANNELS.get(stored.mode, 4 if "transparency" in stored.info or stored.format == "GIF" else 3)
    if channels != 3:
        raise ImageError(
            "the C++ example feeds as many channels as the file has, and the program takes three",
            got=f"{channels} channels ({stored.mode})",
            expected="a picture in colour without alpha",
            where=path,
            fix="ask stbi_load for three channels in the app",
        )
    return np.asarray(stored.convert("RGB"), np.uint8)


def _read_stored(path: Path) -> Pixels:
    return _with_alpha(read_stored(path))


def _read_upright(path: Path) -> Pixels:
    return _with_alpha(upright(read_stored(path)))


def _cpp_size(width: int, height: int, side_px: int) -> Size:
    """The longer side is the frame's, the other is cut to whole pixels."""
    if width > height:
        return side_px, int(height * float(side_px) / width)
    return int(width * float(side_px) / height), side_px


def _cpp_usual(side_px: int) -> tuple[Size, ...]:
    both = (shape for wide in SHAPES for shape in (wide, wide[::-1]))
    sizes = (_cpp_size(width, height, side_px) for width, height in both)
    return tuple(dict.fromkeys(size for size in sizes if min(size)))


def _cpp(pixels: Pixels, frame: Frame) -> Pixels:
    if pixels.shape[2] != 3:
        raise ImageError("the program takes three channels", got=pixels.shape[2], where="cpp")
    size = _cpp_size(pixels.shape[1], pixels.shape[0], frame.side_px)
    if not min(size):
        raise ImageError("nothing is left of the shorter side", got=size, where="cpp", fix="crop the picture")
    return resize_as_stb(pixels, *size)


def _square_size(_width: int, _height: int, side_px: int) -> Size:
    return side_px, side_px


def _square_usual(side_px: int) -> tuple[Size, ...]:
    return ((side_px, side_px),)


def _premultiplied(pixels: Pixels) -> Pixels:
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float64)
    return np.concatenate([to_bytes(pixels[..., :3] * alpha / 255), pixels[..., 3:]], axis=2)


def _android(pixels: Pixels, frame: Frame) -> Pixels:
    """Bitmaps are premultiplied, and `getPixel` divides by alpha again."""
    scaled = resize_as_skia(_premultiplied(pixels), frame.side_px, frame.side_px)
    if scaled.shape[2] == 3:
        return scaled
    alpha = scaled[..., 3:].astype(np.float64)
    colours = np.divide(scaled[..., :3] * 255.0, alpha, out=np.zeros_like(scaled[..., :3], float), where=alpha > 0)
    return to_bytes(colours)


def _ios(pixels: Pixels, frame: Frame) -> Pixels:
    """The context is premultiplied, and its colours are taken as they are: blended on black."""
    return draw_into_square(_premultiplied(pixels)[..., :3], frame.side_px)


def _hugging_face(pixels: Pixels, frame: Frame) -> Pixels:
    """The checkpoint's own processor, its rescaling and normalization undone."""
    if frame.fields is None:
        raise ImageError("the checkpoint has no processor file", expected="preprocessor_config.json", where="hf")
    made = published_pixels(frame.fields, np.ascontiguousarray(pixels[..., :3]))[0]
    if max(made.shape[1:]) > frame.side_px:
        raise ImageError(
            "the checkpoint's processor makes a larger picture than its tower takes",
            got=f"{made.shape[2]} x {made.shape[1]}",
            expected=f"at most {frame.side_px} x {frame.side_px}",
            where=frame.fields.file,
            fix=f"set size and crop_size to {frame.side_px} in that file",
        )
    factor, mean, std = normalization(frame.fields)
    return to_bytes((made * std + mean) / factor).transpose(1, 2, 0)


def _original(pixels: Pixels, frame: Frame) -> Pixels:
    """`expand2square` with CLIP's mean colour, then CLIP's processor: bicubic to the frame."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    longer = max(picture.size)
    square = Image.new("RGB", (longer, longer), tuple(int(mean * 255) for mean in DEFAULTS["image_mean"]))
    square.paste(picture, ((longer - picture.width) // 2, (longer - picture.height) // 2))
    return np.asarray(square.resize((frame.side_px, frame.side_px), Image.Resampling.BICUBIC), np.uint8)


APPS: dict[str, App] = {
    app.name: app
    for app in (
        App(
            "cpp",
            "C++ example (llava_main)",
            "executorch: examples/models/llava/main.cpp, load_image; stb_image and deprecated/stb_image_resize.h at f0569113",
            _read_with_stb,
            _cpp,
            _cpp_size,
            _cpp_usual,
        ),
        App(
            "android",
            "Android LlamaDemo",
            "executorch-examples: llm/android/LlamaDemo, ETImage.kt, resizeImage: Bitmap.createScaledBitmap(…, 336, 336, true)",
            _read_stored,
            _android,
            _square_size,
            _square_usual,
        ),
        App(
            "ios",
            "iOS etLLM",
            "executorch-examples: llm/apple/Application/ContentView.swift, UIImage.centerCropped(to: 336) and rgbBytes",
            _read_upright,
            _ios,
            _square_size,
            _square_usual,
        ),
        App(
            "hf",
            "Hugging Face's processor of this checkpoint",
            "transformers: LlavaImageProcessor with the checkpoint's preprocessor_config.json or processor_config.json",
            hugging_face_image,
            _hugging_face,
            _square_size,
            _square_usual,
        ),
        App(
            "original",
            "original LLaVA (image_aspect_ratio pad)",
            "haotian-liu/LLaVA: llava/mm_utils.py, expand2square and process_images; llava/serve/cli.py, load_image",
            _read_stored,
            _original,
            _square_size,
            _square_usual,
        ),
    )
}
"""By the name that `--app` and `--as` give them."""


def app_named(name: str) -> App:
    """An app of the table. Raises `UsageError` for another name."""
    if name not in APPS:
        raise UsageError("no such app", got=name, expected=", ".join(APPS), fix="give for example --app android")
    return APPS[name]


def frame_of(side_px: int, processor: Processor | object) -> Frame:
    """The frame of a model, with what its processor file says, if there is one."""
    return Frame(side_px, processor.image if isinstance(processor, Processor) else None)
