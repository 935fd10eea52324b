"""`python -m verifier.report report.json`: every form of a report again, without a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command
from verifier.core.extras import require_extra
from verifier.record.verdict import EXIT_STATUS


@command("NOT VERIFIED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status of the verdict in the file, or 2."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.report",
        description="Print a report again, and write its other forms.",
        epilog="exit status: that of the run (0 verified, 1 a check failed, 2 not verified), 2 too if the file cannot be read",
    )
    parser.add_argument("json", type=Path, metavar="FILE.json", help="what --report or --json wrote")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.json, report.html, junit.xml and summary.md into it"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the HTML page under this name")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML under this name")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="append a Markdown summary ($GITHUB_STEP_SUMMARY)")
    parser.add_argument(
        "--annotations", action="store_true", help="print GitHub workflow commands instead of the panel"
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="print only the verdict")
    amount.add_argument("--verbose", action="store_true", help="print a line for each check, and every failure")
    options = parser.parse_args(arguments)
    if options.report or options.html:
        require_extra("report", "a page with pictures")
    from verifier.report.as_html import write_html
    from verifier.report.as_json import read_report
    from verifier.report.as_junit import write_junit
    from verifier.report.as_markdown import append, github_annotations, markdown
    from verifier.report.folder import write_folder
    from verifier.report.terminal import print_report
    from verifier.report.words import summary_lines

    data = read_report(options.json)
    if options.report:
        write_folder(data, options.report)
    if options.html:
        write_html(data, options.html)
    if options.junit:
        write_junit(data, options.junit)
    if options.summary:
        append(markdown(data), options.summary)
    if options.annotations:
        print("\n".join(github_annotations(data)))
    elif options.quiet:
        print("\n".join(summary_lines(data)))
    else:
        print_report(data, verbose=options.verbose)
    return EXIT_STATUS[data["verdict"]]
