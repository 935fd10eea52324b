"""Export time against ExecuTorch's own `export_all`, in turn, in one run: `python -m tests.bench.export [ROUNDS]`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verifier.artifact.program import open_artifact
from verifier.backends.calls import census_of
from verifier.families.checkpoint import EMBEDDED


def _seconds(command: list[str]) -> float:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
    return float(line.split()[1])


def _ours() -> None:
    """The same span as upstream's: from an open checkpoint to an emitted program."""
    from verifier.core.progress import Progress
    from verifier.core.types import Recipe
    from verifier.export.quantize import default_group_size
    from verifier.export.run import CALIBRATION, calibration_images, lower_checkpoint
    from verifier.families.registry import open_checkpoint

    checkpoint = open_checkpoint(sys.argv[2])
    recipe = Recipe(group_size=default_group_size(checkpoint.geometry.text.width))
    begun = time.perf_counter()
    program = lower_checkpoint(checkpoint, recipe, calibration_images(CALIBRATION), Progress(quiet=True))
    print(f"SECONDS {time.perf_counter() - begun:.1f}")
    with Path(sys.argv[3]).open("wb") as file:
        program.write_to_file(file)


def main() -> None:
    """Run both in turn and print every pair, the median ratio, and whether the same work was delegated."""
    if sys.argv[1:2] == ["ours"]:
        _ours()
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else EMBEDDED
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.pte", Path(folder) / "theirs.pte"
        for number in range(rounds):
            a = _seconds(["tests.bench.export", "ours", str(checkpoint), str(ours)])
            b = _seconds(["tests.bench.upstream", str(checkpoint), str(theirs)])
            ratios.append(a / b)
            print(f"round {number + 1}: ours {a:.1f} s, export_all {b:.1f} s, ratio {a / b:.2f}", flush=True)
        delegates = [census_of(open_artifact(path)) for path in (ours, theirs)]
    print(
        f"export: median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}), {rounds} rounds"
    )
    for method in delegates[0]:
        print(
            f"{method}: delegated calls {[c[method].get('delegate:XnnpackBackend', 0) for c in delegates]} (ours, export_all)"
        )


if __name__ == "__main__":
    main()
