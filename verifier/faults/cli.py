"""`python -m verifier.faults`: can the gate fail? Inject real faults, one at a time, and publish what it says."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console

from verifier.core.command import command, split_globs
from verifier.core.errors import UsageError, VerifierError
from verifier.core.files import replacing
from verifier.core.system import can_fork
from verifier.families.checkpoint import EMBEDDED
from verifier.faults.bench import Outcome, Subject, prepare, run_faults, sound
from verifier.faults.catalogue import FAULTS
from verifier.faults.clean import sound_artifacts
from verifier.faults.document import save
from verifier.faults.fault import Fault
from verifier.faults.subjects import make_calibrated_model

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
        "--whole", action="store_true", help="make every check for every fault: which of them see it; an hour"
    )
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument(
        "--clean", action="store_true", help="sound artifacts instead: the gate must pass all 213; an hour"
    )
    parser.add_argument("--no-phones", action="store_true", help="leave out the emulated phones of --clean")
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help="keep the result in DIR/faults.json and write DIR/faults.md from it"
    )
    parser.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="inject the faults of the bytes into this program of the embedded checkpoint, such as another exporter's",
    )
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes, after every one")
    parser.add_argument(
        "--resume", action="store_true", help="go on where the run that wrote the --json FILE was interrupted"
    )
    return parser


def _chosen(options: argparse.Namespace) -> list[Fault]:
    everything = sound_artifacts(phones=not options.no_phones) if options.clean else list(FAULTS)
    globs = split_globs(options.only)
    for glob in globs:
        if not any(fnmatchcase(fault.name, glob) for fault in everything):
            raise UsageError("no fault matches", got=glob, fix="python -m verifier.faults --list")
    if options.write and (globs or options.quick or options.program):
        raise UsageError("only a whole run can be written", fix="leave --only, --quick and --program away")
    if options.program:
        everything = [f for f in everything if f.kind == "bytes" and f.subject == "tiny" and "manifest" not in f.name]
    offered = [fault for fault in everything if fault.quick or not options.quick]
    return [f for f in offered if not globs or any(fnmatchcase(f.name, glob) for glob in globs)]


def _line(fault: Fault, outcome: Outcome) -> str:
    if outcome.problem:
        return f"[red]?[/] {fault.name}: {outcome.problem}"
    if outcome.no_place:
        return f"[dim]–[/] {fault.name}: has no place in this program ({outcome.no_place})"
    mark = "[green]✓[/]" if outcome.right_place(fault) and outcome.right_step(fault) else "[red]✗[/]"
    said = f"{outcome.step} {outcome.check} {outcome.message}"
    return f"{mark} {fault.name} [dim]{outcome.wall_s:.0f} s, exit {outcome.status}[/] {said[:240]}"


@dataclass
class _Kept:
    """Outcomes as they come, in a file if there is one; `wall_s` counts interrupted runs too."""

    path: Path | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    before_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def wall_s(self) -> float:
        return self.before_s + time.monotonic() - self.begun

    def read(self) -> None:
        if self.path is None or not self.path.is_file():
            raise UsageError("there is nothing to resume", got=self.path, fix="give --json the file of that run")
        saved = json.loads(self.path.read_text())
        self.before_s = saved["wall_s"]
        self.outcomes = {outcome.fault: outcome for outcome in map(Outcome.read, saved["outcomes"])}

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.fault] = outcome
        if self.path is not None:
            listed = [asdict(outcome) for outcome in self.outcomes.values()]
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"wall_s": self.wall_s, "outcomes": listed}, indent=1) + "\n")


def _prepare(folder: Path, wanted: set[str], *, references: bool, program: Path | None) -> dict[str, Subject]:
    """The subjects that faults ask for, `program` in place of the embedded one; with `references`, what the gate computes in fp32 for each of them is
    kept."""
    few = ("square_0*", "wide_0*", "blank*")
    subjects = {"tiny": Subject(program or EMBEDDED / "llava_tiny.pte", EMBEDDED, few=few, foreign=program is not None)}
    if "micro" in wanted:
        model = folder / "micro-model"
        model.mkdir()
        pte = make_calibrated_model(model)
        subjects["micro"] = Subject(pte, model, ("--model", str(model)))
    if references:
        for subject in subjects.values():
            prepare(subject)
    return subjects


def _run(faults: list[Fault], options: argparse.Namespace, console: Console, kept: _Kept) -> None:
    named = {fault.name: fault for fault in faults if fault.name not in kept.outcomes}
    with tempfile.TemporaryDirectory(prefix="verifier-faults-") as place:
        folder = Path(place)
        torch.set_num_threads(1)  # children are forked, and do not inherit the threads of OpenMP
        import_module("torchao.quantization")  # here, once: two seconds, which every child would take
        references = not options.quick
        wanted = {fault.subject for fault in named.values()}
        subjects = _prepare(folder, wanted, references=references, program=options.program)
        controls = {fault.name: fault for fault in map(sound, subjects)} if references and not options.clean else {}
        for outcome in run_faults(
            [*controls.values(), *sorted(named.values(), key=_slowest_first)],
            subjects,
            folder,
            workers=options.workers,
            quick=options.quick,
            whole=options.whole,
        ):
            if outcome.fault in controls:
                if outcome.status != 0:
                    raise VerifierError(
                        "the clean program does not pass: nothing can be learnt from faults",
                        got=outcome.message or outcome.problem or outcome.no_place,
                        where=subjects[controls[outcome.fault].subject].pte,
                    )
                console.print(f"[dim]{outcome.fault} passes, {outcome.wall_s:.0f} s[/]", highlight=False)
                continue
            kept.add(outcome)
            console.print(_line(named[outcome.fault], outcome), highlight=False)


def _slowest_first(fault: Fault) -> bool:
    """A worker with the longest one last would end alone."""
    return not fault.slow


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(file=sys.stderr)
    kept = _Kept(options.json)
    faults = _chosen(options)
    if options.list:
        print("\n".join(f"{fault.name:32} {fault.kind:7} {fault.text}" for fault in faults))
        return 0
    if not can_fork():
        raise UsageError(
            "the bench forks a process that has loaded torch, which this system does not allow", fix="run it on Linux"
        )
    if options.resume:
        kept.read()
    _run(faults, options, console, kept)
    outcomes = [kept.outcomes[fault.name] for fault in faults]
    if options.write:
        part = "clean" if options.clean else "witnesses" if options.whole else "faults"
        save(options.write, part, outcomes, kept.wall_s, options.workers)
    pairs = [(f, o) for f, o in zip(faults, outcomes, strict=True) if not o.no_place]
    absent = len(faults) - len(pairs)
    found = sum(o.found(f) for f, o in pairs)
    steps = sum(o.right_step(f) for f, o in pairs)
    places = sum(o.right_place(f) for f, o in pairs)
    if options.clean:
        print(f"{len(pairs) - found} false alarms in {len(pairs)} sound artifacts, {kept.wall_s:.0f} s")
        return NOT_RUN if any(o.problem for o in outcomes) else 0 if found == len(pairs) else NOT_FOUND
    print(
        f"{found} of {len(pairs)} faults found, {steps} in the right step, {places} in the right place, {kept.wall_s:.0f} s"
        + (f"; {absent} more have no place in this program" if absent else "")
    )
    if any(outcome.problem for outcome in outcomes):
        return NOT_RUN
    return 0 if found == steps == places == len(pairs) else NOT_FOUND
