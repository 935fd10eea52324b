"""`python -m verifier.test_pte llava.pte`: may these bytes ship?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.core.command import command

if TYPE_CHECKING:
    from verifier.comparison.compare import Comparison

__test__ = False  # a command, not a test module, whatever its name says


def _parser() -> argparse.ArgumentParser:
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
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.json, report.html, junit.xml and summary.md into this folder, and a wrong kernel's reproduction",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write report.json under this name")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML under this name")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="OLD",
        help="also compare with this .pte or report.json; what is worse than it fails",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept checks that could not be made (never failed ones)"
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="print only the verdict")
    amount.add_argument("--verbose", action="store_true", help="print a line for each check, and every failure")
    return parser


def _check_destinations(options: argparse.Namespace) -> None:
    """Refuse before the work what cannot be written after it."""
    from verifier.files import replacing

    paths = [options.json, options.junit, options.report and options.report / "report.json"]
    for path in filter(None, paths):
        probe = path.with_name(f".probe-{path.name}")
        with replacing(probe):
            pass
        probe.unlink()


def _write(options: argparse.Namespace, data: dict[str, Any]) -> None:
    from verifier.report.as_json import write_json
    from verifier.report.as_junit import write_junit
    from verifier.report.folder import write_folder

    if options.json:
        write_json(data, options.json)
    if options.junit:
        write_junit(data, options.junit)
    if options.report:
        write_folder(data, options.report)


def _baseline(options: argparse.Namespace) -> dict[str, Any]:
    """The report of the baseline, read or made; before the work, so that one that is not there is refused before it."""
    from verifier.comparison.sources import read_side
    from verifier.progress import Progress

    progress = Progress(quiet=True) if options.quiet else Progress()
    return read_side(options.baseline, model=options.model, target=options.target, progress=progress)


def _compare(options: argparse.Namespace, old: dict[str, Any], data: dict[str, Any]) -> Comparison:
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
    from verifier.opening import Request, split_globs
    from verifier.pipeline import verify
    from verifier.progress import Progress
    from verifier.report.as_json import report
    from verifier.report.terminal import print_report
    from verifier.report.words import summary_lines

    _check_destinations(options)
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
    )
    run = verify(request, Progress(quiet=True) if options.quiet else Progress())
    data, status = report(run), run.judgement.exit_status
    _write(options, data)
    if options.quiet:
        print("\n".join(summary_lines(data)))
    else:
        print_report(data, verbose=options.verbose)
    if old is not None:
        comparison = _compare(options, old, data)
        _show(comparison, quiet=options.quiet)
        status = status or (1 if comparison.refused else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
