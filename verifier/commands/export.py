"""`python -m verifier.export_llava --pte-name llava.pte --with-artifacts`: export LLaVA-1.5 to ExecuTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command
from verifier.core.types import Recipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.export_llava",
        description="Export LLaVA-1.5 to ExecuTorch.",
        epilog="vision_encoder takes pictures with even sides, from 2 to 336 px each (docs/app-pixels.md says why, and which apps feed others)",
    )
    boolean = argparse.BooleanOptionalAction
    parser.add_argument(
        "--pte-name", type=Path, default=Path("llava.pte"), help="output file; its manifest lies beside it"
    )
    parser.add_argument("--model", default=None, help="checkpoint folder or hub id (default: the embedded llava_tiny)")
    parser.add_argument("--with-artifacts", action=boolean, default=False, help="also write tokenizer.bin and image.pt")
    parser.add_argument("--image", type=Path, help="image for image.pt (default: the first calibration image)")
    parser.add_argument(
        "--calibration", type=Path, help="folder of images that set the int8 ranges of the vision encoder"
    )
    parser.add_argument("--max-seq-len", type=int, default=768, help="longest sequence of one call (default 768)")
    parser.add_argument("--max-context-len", type=int, help="length of the KV-cache (default: --max-seq-len)")
    parser.add_argument(
        "--group-size", type=int, help="4-bit group along input channels (default 128, less for narrow models)"
    )
    parser.add_argument("--quantizer", choices=("affine", "hqq"), default="affine", help="how 4-bit scales are chosen")
    parser.add_argument("--embedding-bits", type=int, choices=(8, 4, 32), default=8)
    parser.add_argument("--use-sdpa-with-kv-cache", action=boolean, default=True, help="use the custom attention ops")
    parser.add_argument("--static-image-shape", action=boolean, default=False, help="take only full square images")
    parser.add_argument(
        "--profile-memory",
        "--profile_memory",
        action="store_true",
        help="write a Chrome trace of the memory plan per method",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 exported, 2 not."""
    options = _parser().parse_args(arguments)
    from verifier.core.progress import Progress
    from verifier.export.quantize import default_group_size
    from verifier.export.run import CALIBRATION, calibration_images, export_llava
    from verifier.families.pixels.image_file import read_image
    from verifier.families.registry import open_checkpoint

    checkpoint = open_checkpoint(options.model)
    recipe = Recipe(
        max_seq_len=options.max_seq_len,
        max_context_len=options.max_context_len or options.max_seq_len,
        group_size=options.group_size or default_group_size(checkpoint.geometry.text.width),
        quantizer=options.quantizer,
        embedding_bits=options.embedding_bits,
        use_sdpa_with_kv_cache=options.use_sdpa_with_kv_cache,
        static_image_shape=options.static_image_shape,
    )
    if options.image is not None:
        read_image(options.image)  # refused now, not after minutes of work
    progress = Progress(quiet=True) if options.quiet else Progress()
    exported = export_llava(
        checkpoint,
        recipe,
        options.pte_name,
        images=calibration_images(
            options.calibration or CALIBRATION, warn=lambda text: print(f"warning: {text}", file=sys.stderr)
        ),
        with_artifacts=options.with_artifacts,
        sample_image=options.image,
        profile_memory=options.profile_memory,
        progress=progress,
    )
    if not options.quiet:
        size_mb = exported.pte.stat().st_size / 1e6
        print(f"{exported.pte}: {size_mb:.2f} MB, {recipe.name}, {sum(progress.stage_s.values()):.0f} s")
        for path in (exported.manifest, *exported.artifacts):
            print(path)
    return 0
