"""`python -m verifier.image_util PICTURE [--as APP] [--output-path Y]`: a picture as runners read it, or as an app would feed it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from verifier.core.command import command
from verifier.core.errors import UsageError
from verifier.export.image_tensor import check_suffix, save_image_tensor
from verifier.families.pixels.apps.registry import APPS, app_named, frame_of
from verifier.families.pixels.image_file import READABLE, read_image
from verifier.families.pixels.processor import find_processor
from verifier.families.registry import open_checkpoint, open_family


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m verifier.image_util", description=__doc__)
    parser.add_argument(
        "picture", type=Path, nargs="?", metavar="PICTURE", help=f"{READABLE}; the orientation tag is applied"
    )
    parser.add_argument("--image-path", type=Path, help="the same as PICTURE")
    parser.add_argument("--output-path", type=Path, help="*.pt (TorchScript) or *.npy (default: PICTURE.APP.npy here)")
    parser.add_argument(
        "--as", dest="app", metavar="APP", help=f"as this app would feed it: {', '.join(APPS)} (docs/app-pixels.md)"
    )
    parser.add_argument(
        "--model", help="checkpoint folder or hub id, whose processor --as hf takes (default: the embedded one)"
    )
    return parser


def prepare_file(path: Path) -> Tensor:
    """A picture as the embedded model takes it, uint8 [3, h, w]: its frame is LLaVA-1.5's own, 336 px. Raises `ImageError`."""
    return open_family(open_checkpoint()).pixels.prepare(read_image(path))


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    source = options.picture or options.image_path
    if source is None or (options.picture and options.image_path):
        raise UsageError(
            "one picture is needed", got=options.image_path, expected="PICTURE", fix="give the path of one picture"
        )
    app = app_named(options.app) if options.app else None
    output = options.output_path or Path(f"{source.stem}.{app.name if app else 'image'}.npy")
    check_suffix(output)
    checkpoint = open_checkpoint(options.model)
    pixels = open_family(checkpoint).pixels
    if app is None:
        image = pixels.prepare(read_image(source))
    else:
        frame = frame_of(pixels.side_px, find_processor(checkpoint.directory))
        image = torch.from_numpy(app.picture(source, frame))
    save_image_tensor(image, output)
    print(f"{output}: uint8 {list(image.shape)}" + (f", as {app.title} feeds it" if app else ""))
    return 0
