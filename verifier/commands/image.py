"""`python -m verifier.image_util --image-path X --output-path Y`: an image as runners read it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from verifier.core.command import command
from verifier.export.image_tensor import check_suffix, save_image_tensor
from verifier.families.pixels.image_file import READABLE, read_image
from verifier.families.registry import open_checkpoint, open_family


def prepare_file(path: Path) -> Tensor:
    """A picture as the embedded model takes it, uint8 [3, h, w]: its frame is LLaVA-1.5's own, 336 px. Raises `ImageError`."""
    return open_family(open_checkpoint()).pixels.prepare(read_image(path))


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m verifier.image_util", description=__doc__)
    parser.add_argument("--image-path", type=Path, required=True, help=f"{READABLE}; the orientation tag is applied")
    parser.add_argument("--output-path", type=Path, required=True, help="*.pt (TorchScript) or *.npy")
    options = parser.parse_args(arguments)
    check_suffix(options.output_path)
    image = prepare_file(options.image_path)
    save_image_tensor(image, options.output_path)
    print(f"{options.output_path}: uint8 {list(image.shape)}")
    return 0
