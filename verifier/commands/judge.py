"""`python -m verifier.judge DIR`: judge again what `--keep-evidence DIR` saved, without the program, its checkpoint or a runtime."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command, split_globs


def _parser() -> argparse.ArgumentParser:
    from verifier.core.prices import add_budget_option
    from verifier.report.output import add_output_options

    parser = argparse.ArgumentParser(
        prog="python -m verifier.judge",
        description="Judge saved evidence again: the same verdict, or that of other checks.",
        epilog="exit status: 0 verified, 1 a check failed, 2 not verified (no such evidence, or something missing in it)",
    )
    parser.add_argument("evidence", type=Path, metavar="DIR", help="the folder that --keep-evidence named")
    parser.add_argument(
        "--checks",
        default="",
        help="only these checks: comma-separated globs such as 'logits.*,kvcache.*' (default: those of the run)",
    )
    add_budget_option(parser, in_place_of="that of the run")
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept checks that could not be made (never failed ones)"
    )
    add_output_options(parser)
    return parser


@command("NOT VERIFIED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    from verifier.core.prices import parse_prices
    from verifier.record.judging import judge, kept
    from verifier.report.as_json import report
    from verifier.report.output import check_destinations, print_verdict, write_reports

    check_destinations(options)
    prices = parse_prices(options.budget)
    gathered = kept(options.evidence).asking(split_globs(options.checks), allow_partial=options.allow_partial)
    run = judge(gathered.pricing(prices))
    data = report(run)
    write_reports(options, data)
    print_verdict(options, data)
    return run.judgement.exit_status
