"""`python -m verifier.skew FILE --runtimes 1.4.1,1.5.1`: at which release of the runtime the first instruction's bits change."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.skew",
        description="Run one file on several releases of ExecuTorch, and name the first instruction whose result has other bits, with its limit.",
        epilog="exit status: 0 same bits or rounding, 1 a runtime is beyond the limit of an instruction, 2 something did not run or cannot be judged",
    )
    parser.add_argument("pte", type=Path, metavar="PTE")
    parser.add_argument(
        "--runtimes",
        required=True,
        metavar="V,V[,…]",
        help="releases of executorch, or paths of Pythons that have it; the first that runs is what the others are held against",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="checkpoint folder or hub id (default: the embedded llava_tiny)"
    )
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="most pictures to talk about (default: 6, of a large model 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.add_argument("--quiet", action="store_true", help="print only the first line")
    return parser


@command("NOT COMPARED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    import json

    from verifier.core.errors import UsageError
    from verifier.core.progress import Progress, hushed
    from verifier.report.as_json import write_text
    from verifier.skews.run import compare_runtimes
    from verifier.skews.words import as_data, exit_status, print_skew

    words = [word for word in options.runtimes.split(",") if word]
    if len(set(words)) < 2:
        raise UsageError("a comparison needs two runtimes", got=options.runtimes, fix="--runtimes 1.4.1,1.5.1")
    if options.pictures is not None and options.pictures < 1:
        raise UsageError("at least one picture is needed", got=options.pictures, fix="--pictures 1")
    progress = Progress(quiet=True) if options.quiet else Progress()
    with hushed() as stream:
        progress.stream = stream
        skew = compare_runtimes(options.pte, options.model, words, progress=progress, pictures=options.pictures)
    if options.json:
        write_text(options.json, json.dumps(as_data(skew), indent=1, allow_nan=False) + "\n")
    print_skew(skew, quiet=options.quiet)
    return exit_status(skew)
