"""`python -m verifier.faults`: can the gate fail? Inject real faults, one at a time, and publish what it says."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from verifier.checkpoint import EMBEDDED
from verifier.errors import UsageError, VerifierError
from verifier.faults.bench import Outcome, Subject, prepare, run_faults
from verifier.faults.catalogue import FAULTS
from verifier.faults.clean import sound_artifacts
from verifier.faults.document import save
from verifier.faults.fault import Fault
from verifier.faults.subjects import calibrate_model, make_micro_model
from verifier.files import replacing
from verifier.opening import split_globs

NOT_FOUND, NOT_RUN = 1, 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.faults",
        description="Inject real faults one at a time and see whether the gate finds them.",
        epilog="exit status: 0 all found and blamed rightly, 1 not, 2 the bench itself failed",
    )
    parser.add_argument("--only", default="", help="only these faults: comma-separated globs of their names")
    parser.add_argument("--quick", action="store_true", help="a few, each by the family of checks that is to find it")
    parser.add_argument(
        "--whole", action="store_true", help="make every check for every fault: counts all witnesses, takes hours"
    )
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument(
        "--clean", action="store_true", help="sound artifacts instead: the gate must pass all 210; an hour"
    )
    parser.add_argument("--no-phones", action="store_true", help="leave out the emulated phones of --clean")
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help="keep the result in DIR/faults.json and write DIR/faults.md from it"
    )
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes")
    return parser


def _chosen(options: argparse.Namespace) -> list[Fault]:
    everything = sound_artifacts(phones=not options.no_phones) if options.clean else list(FAULTS)
    globs = split_globs(options.only)
    for glob in globs:
        if not any(fnmatchcase(fault.name, glob) for fault in everything):
            raise UsageError("no fault matches", got=glob, fix="python -m verifier.faults --list")
    if options.write and (globs or options.quick):
        raise UsageError("only a whole run can be written", fix="leave --only and --quick away")
    offered = [fault for fault in everything if fault.quick or not options.quick]
    return [f for f in offered if not globs or any(fnmatchcase(f.name, glob) for glob in globs)]


def _line(fault: Fault, outcome: Outcome) -> str:
    if outcome.problem:
        return f"[red]?[/] {fault.name}: {outcome.problem}"
    mark = "[green]✓[/]" if outcome.right_place(fault) and outcome.right_step(fault) else "[red]✗[/]"
    said = f"{outcome.step} {outcome.check} {outcome.message}"
    return f"{mark} {fault.name} [dim]{outcome.wall_s:.0f} s, exit {outcome.status}[/] {said[:240]}"


def _run(faults: list[Fault], options: argparse.Namespace, console: Console) -> list[Outcome]:
    named = {fault.name: fault for fault in faults}
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="verifier-faults-") as place:
        folder = Path(place)
        subjects = {
            "tiny": Subject(EMBEDDED / "llava_tiny.pte", EMBEDDED, few=("pair_base*", "square_0*", "wide_0*", "blank*"))
        }
        if any(fault.subject == "micro" for fault in faults):
            (folder / "micro-model").mkdir()
            pte = make_micro_model(folder / "micro-model")
            calibrate_model(pte)
            subjects["micro"] = Subject(pte, pte.parent, ("--model", str(pte.parent)))
        if not options.quick:
            prepare(list(subjects.values()))
        for outcome in run_faults(
            faults, subjects, folder, workers=options.workers, quick=options.quick, whole=options.whole
        ):
            outcomes[outcome.fault] = outcome
            console.print(_line(named[outcome.fault], outcome), highlight=False)
    return [outcomes[fault.name] for fault in faults]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(file=sys.stderr)
    begun = time.monotonic()
    try:
        faults = _chosen(options)
        if options.list:
            print("\n".join(f"{fault.name:32} {fault.kind:7} {fault.text}" for fault in faults))
            return 0
        outcomes = _run(faults, options, console)
        if options.json:
            with replacing(options.json) as temporary:
                temporary.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
        if options.write:
            part = "clean" if options.clean else "faults"
            save(options.write, part, outcomes, time.monotonic() - begun, options.workers)
    except VerifierError as error:
        print(error, file=sys.stderr)
        return NOT_RUN
    pairs = list(zip(faults, outcomes, strict=True))
    found = sum(o.found(f) for f, o in pairs)
    steps = sum(o.right_step(f) for f, o in pairs)
    places = sum(o.right_place(f) for f, o in pairs)
    if options.clean:
        print(f"{len(pairs) - found} false alarms in {len(pairs)} sound artifacts, {time.monotonic() - begun:.0f} s")
        return NOT_RUN if any(o.problem for o in outcomes) else 0 if found == len(pairs) else NOT_FOUND
    print(
        f"{found} of {len(pairs)} faults found, {steps} in the right step, {places} in the right place, {time.monotonic() - begun:.0f} s"
    )
    if any(outcome.problem for outcome in outcomes):
        return NOT_RUN
    return 0 if found == steps == places == len(pairs) else NOT_FOUND
