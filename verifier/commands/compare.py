"""`python -m verifier.compare OLD.pte NEW.pte`: is the candidate better, the same, or worse than what ships?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command
from verifier.core.errors import UsageError
from verifier.runner.targets import TARGETS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.compare",
        description="Hold a candidate against a baseline: structure, size, weights, numerics, captions, speed.",
        epilog="exit status: 0 nothing is worse beyond its budget, 1 something is, 2 not compared",
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="the baseline: a .pte, or the report.json of one")
    parser.add_argument("new", type=Path, metavar="NEW", help="the candidate, likewise")
    parser.add_argument("--model", help="checkpoint folder or hub id (default: the embedded llava_tiny)")
    parser.add_argument("--target", default="local", help=f"where to run: {TARGETS}")
    parser.add_argument(
        "--speed", action="store_true", help="also measure memory and speed, in turns, alone on the machine"
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=PERCENT",
        help="accept a loss of file_bytes, planned_bytes, peak_rss_bytes, prefill_loops or decode_loops up to PERCENT",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="append it in Markdown ($GITHUB_STEP_SUMMARY)")
    parser.add_argument("--quiet", action="store_true", help="print only the first line")
    return parser


def parse_budgets(words: Sequence[str]) -> dict[str, float]:
    """`NAME=PERCENT` as shares. Raises `UsageError`."""
    from verifier.comparison.compare import BUDGETS

    made = {}
    for word in words:
        name, _, percent = word.partition("=")
        try:
            share = float(percent.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if name not in BUDGETS or not 0 <= share <= 100:
            raise UsageError(
                "the budget is not usable", got=word, expected=f"NAME=PERCENT, NAME one of {', '.join(BUDGETS)}"
            )
        made[name] = share
    return made


@command("NOT COMPARED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    import json

    from verifier.comparison.compare import as_data, compare_reports
    from verifier.comparison.sources import read_both
    from verifier.comparison.terminal import comparison_markdown, print_comparison
    from verifier.core.progress import Progress
    from verifier.report.as_json import write_text
    from verifier.report.as_markdown import append

    budgets = parse_budgets(options.budget)
    progress = Progress(quiet=True) if options.quiet else Progress()
    old, new = read_both(
        options.old, options.new, model=options.model, target=options.target, speed=options.speed, progress=progress
    )
    comparison = compare_reports(old, new, budgets=budgets)
    if options.json:
        write_text(options.json, json.dumps(as_data(comparison), indent=1, allow_nan=False) + "\n")
    if options.summary:
        append(comparison_markdown(comparison), options.summary)
    if options.quiet:
        print(comparison.first_line)
    else:
        print_comparison(comparison)
    return 1 if comparison.refused else 0
