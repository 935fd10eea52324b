"""`python -m verifier.test_pte llava.pte`: may these bytes ship?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.core.command import command, split_globs
from verifier.core.records import JsonObject

if TYPE_CHECKING:
    from verifier.comparison.compare import Comparison


def _parser() -> argparse.ArgumentParser:
    from verifier.core.prices import add_budget_option
    from verifier.report.output import add_output_options
    from verifier.runner.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m verifier.test_pte",
        description="Verify that an exported LLaVA program still computes its checkpoint.",
        epilog="exit status: 0 verified, 1 a check failed, 2 not verified (bad file, bad usage, something missing)",
    )
    parser.add_argument("pte", type=Path, metavar="PTE", help="the program to verify")
    parser.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE", help="also caption this image, in fp32 and by the program"
    )
    parser.add_argument("--model", help="checkpoint folder or hub id (default: the embedded llava_tiny)")
    parser.add_argument("--target", default="local", help=f"where to run: {TARGETS}")
    parser.add_argument(
        "--checks", default="", help="only these checks: comma-separated globs such as 'logits.*,kvcache.*'"
    )
    parser.add_argument(
        "--images",
        default="",
        help="only these golden images, for a slow target: comma-separated globs such as 'square_*'",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="the tokenizer.bin, .model or .json that ships (default: all that lie beside PTE)",
    )
    parser.add_argument(
        "--keep-evidence",
        type=Path,
        metavar="DIR",
        help="save what was gathered in this folder: python -m verifier.judge DIR judges it again without a run",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="OLD",
        help="also compare with this .pte or report.json; what is worse than it fails",
    )
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="for a checkpoint without golden.json: compute the answers that are kept in the cache anew",
    )
    parser.add_argument(
        "--app",
        action="append",
        default=[],
        metavar="NAME,...",
        help="also judge the picture paths of these apps: cpp, android, ios, hf, original (docs/app-pixels.md)",
    )
    add_budget_option(parser, in_place_of="the default")
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept checks that could not be made (never failed ones)"
    )
    add_output_options(parser)
    return parser


def _baseline(options: argparse.Namespace) -> JsonObject:
    """The report of the baseline, read or made; before the work, so that one that is not there is refused before it."""
    from verifier.comparison.sources import read_side
    from verifier.core.progress import Progress

    progress = Progress(quiet=True) if options.quiet else Progress()
    return read_side(options.baseline, model=options.model, target=options.target, progress=progress)


def _compare(options: argparse.Namespace, old: JsonObject, data: JsonObject) -> Comparison:
    """The baseline against what was just verified."""
    import json

    from verifier.comparison.compare import as_data, compare_reports
    from verifier.comparison.terminal import comparison_markdown
    from verifier.report.as_json import write_text
    from verifier.report.as_markdown import append

    comparison = compare_reports(old, data)
    if options.report:
        write_text(
            options.report / "comparison.json", json.dumps(as_data(comparison), indent=1, allow_nan=False) + "\n"
        )
        append("\n" + comparison_markdown(comparison), options.report / "summary.md")
    return comparison


def _show(comparison: Comparison, *, quiet: bool) -> None:
    from verifier.comparison.terminal import print_comparison

    if quiet:
        print(comparison.first_line)
    else:
        print()
        print_comparison(comparison)


@command("NOT VERIFIED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)  # PTE --flag IMAGE works too
    from verifier.core.prices import parse_prices
    from verifier.core.progress import Progress
    from verifier.core.versions import warning
    from verifier.gather.opening import Request
    from verifier.pipeline import verify
    from verifier.report.as_json import report
    from verifier.report.output import check_destinations, print_verdict, write_reports

    if said := warning():
        print(f"warning: {said}", file=sys.stderr)
    check_destinations(options)
    prices = parse_prices(options.budget)
    old = _baseline(options) if options.baseline else None
    checks, images = split_globs(options.checks), split_globs(options.images)
    reproduction = options.report and options.report / "reproduction"
    request = Request(
        options.pte,
        options.model,
        options.target,
        checks,
        options.allow_partial,
        options.image,
        reproduction,
        images,
        options.tokenizer,
        options.keep_evidence,
        options.refresh,
        prices,
        split_globs(",".join(options.app)),
    )
    run = verify(request, Progress(quiet=True) if options.quiet else Progress())
    data, status = report(run), run.judgement.exit_status
    write_reports(options, data)
    print_verdict(options, data)
    if old is not None:
        comparison = _compare(options, old, data)
        _show(comparison, quiet=options.quiet)
        status = status or (1 if comparison.refused else 0)
    return status
