"""`python -m verifier.runner BUNDLE --target T [--result DIR]`: carry out a saved bundle, keep the result, compare with what is expected.

Exit status: 0 every call returned, and what the bundle expects came out; 1 it did not; 2 the bundle or the target cannot be
used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from verifier.core.command import command
from verifier.core.compare import Mismatch, compare
from verifier.core.errors import RunnerError
from verifier.core.limits import limit
from verifier.runner.bundle import load_bundle, recorded_hash
from verifier.runner.protocol import Result, program_hash
from verifier.runner.result import expected_path, save_result
from verifier.runner.targets import TARGETS, make_runner

TIMEOUT_S = 3600.0


def carry_out(options: argparse.Namespace) -> int:
    """Run and report; the exit status."""
    bundle = load_bundle(options.bundle)
    if program_hash(bundle.pte) != recorded_hash(options.bundle):
        raise RunnerError("not the bundle's program", got=program_hash(bundle.pte), where=bundle.pte)
    if options.result is not None:
        options.result.mkdir(parents=True, exist_ok=True)
    with closing(make_runner(options.target)) as runner:
        result = runner.run(bundle, timeout_s=options.timeout_s)
    if options.result is not None:
        save_result(result, options.result)
    machine = f"{result.isa} {' '.join(result.cpu_features)}".strip()
    print(f"{result.outcome}: {result.finished_calls} of {len(bundle.calls)} calls on {options.target} ({machine})")
    if result.message:
        print(result.message)
    agrees = [_compare(options.bundle, number, result) for number in range(len(bundle.calls))]
    return 0 if result.outcome == "ok" and all(agrees) else 1


def _compare(folder: Path, call: int, result: Result) -> bool:
    """Print how far a call's output is from what the bundle expects, if it does; whether they agree."""
    path = expected_path(folder, call)
    if not path.is_file():
        return True
    if call not in result.outputs:
        print(f"call {call}: no output came back")
        return False
    made = compare(actual=result.outputs[call], expected=np.load(path, allow_pickle=False), masked=True)
    if isinstance(made, Mismatch):
        print(f"call {call}: {made.reason}")
        return False
    scale = float(np.abs(made.expected).max())
    worst, off = made.worst(), made.count_over(CLOSE.value * scale)
    print(
        f"call {call}: {off} of {made.actual.size} numbers differ by more than {CLOSE.value:g} of the largest; "
        f"the worst by {worst.error:.4g}, at {list(worst.index)}"
    )
    return FEW.admits(off / made.actual.size)


CLOSE, FEW = limit("runner.close"), limit("runner.few")


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m verifier.runner", description="Carry out a saved bundle.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="its folder")
    parser.add_argument("--target", default="local", help=TARGETS)
    parser.add_argument("--result", type=Path, metavar="DIR", help="keep what comes back here")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S)
    return carry_out(parser.parse_args(arguments))
