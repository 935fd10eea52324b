"""Where a command puts its report: options of the command line, files, terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.core.extras import require_extra
from verifier.core.files import replacing

if TYPE_CHECKING:
    from verifier.report.as_json import Report


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """`--report`, `--json`, `--junit`, `--quiet` and `--verbose`."""
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.json, report.html, junit.xml and summary.md into this folder, and a wrong kernel's reproduction",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write report.json under this name")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML under this name")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="print only the verdict")
    amount.add_argument("--verbose", action="store_true", help="print a line for each check, and every failure")


def check_destinations(options: argparse.Namespace) -> None:
    """Refuse before the work what cannot be written after it. Raises `UsageError`."""
    if options.report:
        require_extra("report", "--report")
    paths = [options.json, options.junit, options.report and options.report / "report.json"]
    for path in filter(None, paths):
        probe = path.with_name(f".probe-{path.name}")
        with replacing(probe):
            pass
        probe.unlink()


def write_reports(options: argparse.Namespace, data: Report) -> None:
    """The files that were asked for."""
    from verifier.report.as_json import write_json
    from verifier.report.as_junit import write_junit
    from verifier.report.folder import write_folder

    if options.json:
        write_json(data, options.json)
    if options.junit:
        write_junit(data, options.junit)
    if options.report:
        write_folder(data, options.report)


def print_verdict(options: argparse.Namespace, data: Report) -> None:
    """The verdict alone, or the report."""
    from verifier.report.terminal import print_report
    from verifier.report.words import summary_lines

    if options.quiet:
        print("\n".join(summary_lines(data)))
    else:
        print_report(data, verbose=options.verbose)
