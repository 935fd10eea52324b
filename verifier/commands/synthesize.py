"""`python -m verifier.synth_checkpoint --geometry llava-1.5-7b --out DIR`: a checkpoint of full size where there is none.

For exporters, gates and benchmarks that must be tried at full size: the shapes are exact, the weights are made from a seed with the
statistics of trained ones. It knows nothing about pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command
from verifier.core.errors import UsageError
from verifier.core.progress import Progress, hushed
from verifier.synth.folder import write_checkpoint
from verifier.synth.geometries import NAMED, find_config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.synth_checkpoint",
        description="Make a LLaVA-1.5 checkpoint from a seed: exact shapes, realistic statistics, sharded bf16.",
    )
    names = ", ".join(("tiny", *NAMED))
    parser.add_argument("--geometry", required=True, metavar="NAME|FILE", help=f"{names}, or a config.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 written, 2 not."""
    options = _parser().parse_args(arguments)
    progress = Progress(quiet=options.quiet)
    try:
        with hushed() as stream:
            progress.stream = stream
            write_checkpoint(options.out, find_config(options.geometry), seed=options.seed, progress=progress)
    except OSError as error:
        print(UsageError("the checkpoint cannot be written", got=error, where=options.out), file=sys.stderr)
        return 2
    print(f"{options.out}: {options.geometry}, seed {options.seed}")
    return 0
