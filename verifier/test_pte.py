"""`python -m verifier.test_pte llava.pte`: may these bytes ship?"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from runner.targets import TARGETS
from verifier.errors import VerifierError

__test__ = False  # a command, not a test module, whatever its name says

EXIT_NOT_VERIFIED = 2


def _parser() -> argparse.ArgumentParser:
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
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.json and junit.xml into this folder, and a wrong kernel's reproduction",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write report.json under this name")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML under this name")
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept checks that could not be made (never failed ones)"
    )
    parser.add_argument("--quiet", action="store_true", help="print only the verdict")
    return parser


def _destinations(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Where JSON and JUnit go; refused before the work if a folder cannot be written."""
    from verifier.files import replacing

    folder: Path | None = options.report
    json_paths = [p for p in (options.json, folder / "report.json" if folder else None) if p]
    junit_paths = [p for p in (options.junit, folder / "junit.xml" if folder else None) if p]
    for path in (*json_paths, *junit_paths):
        probe = path.with_name(f".probe-{path.name}")
        with replacing(probe):
            pass
        probe.unlink()
    return json_paths, junit_paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)  # PTE --flag IMAGE works too
    try:
        from verifier.opening import Request, split_globs
        from verifier.pipeline import verify
        from verifier.progress import Progress
        from verifier.report.as_json import write_json
        from verifier.report.as_junit import write_junit
        from verifier.report.terminal import print_run, summary_lines

        json_paths, junit_paths = _destinations(options)
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
        )
        run = verify(request, Progress(quiet=True) if options.quiet else Progress())
        for path in json_paths:
            write_json(run, path)
        for path in junit_paths:
            write_junit(run, path)
    except VerifierError as error:
        print(f"NOT VERIFIED: {error}", file=sys.stderr)
        return EXIT_NOT_VERIFIED
    except Exception:
        traceback.print_exc()
        print("NOT VERIFIED: the verifier itself failed; please report this with the traceback above", file=sys.stderr)
        return EXIT_NOT_VERIFIED
    if options.quiet:
        print("\n".join(summary_lines(run)))
    else:
        print_run(run)
    return run.judgement.exit_status


if __name__ == "__main__":
    sys.exit(main())
