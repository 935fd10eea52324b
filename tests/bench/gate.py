"""`python -m tests.bench.gate BASE [--runs N]`: the whole gate on the embedded model, this tree against an earlier commit, in turn.

Each side runs as a process of its own with its own code and data, A B A B; the ratios are taken pair by pair, so that a machine whose speed
drifts slows both alike.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALLOWED_RATIO = 1.10
"""Of CPU and of wall time, by the median: policy, what a change may cost everybody who runs the gate."""


def _timed(tree: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one verification by the code of a tree. Raises `RuntimeError` if it is no pass."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    words = [sys.executable, "-m", "verifier.test_pte", "golden/llava_tiny/llava_tiny.pte", "--quiet"]
    done = subprocess.run(
        words, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    wall_s = time.perf_counter() - begun
    if done.returncode != 0:
        raise RuntimeError(f"{tree}: exit status {done.returncode}\n{done.stdout}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print seconds and ratios; returns 1 if the median ratio of wall or CPU time is above `ALLOWED_RATIO`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gate", description=__doc__)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--runs", type=int, default=5, help="pairs that count, after one that does not (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verifier-bench-") as place:
        base = Path(place) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", base, options.base], cwd=ROOT, check=True)
        try:
            pairs = [(_timed(ROOT), _timed(base)) for _ in range(options.runs + 1)][1:]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", base], cwd=ROOT, check=True)
    medians = []
    for number, name in enumerate(("wall", "CPU")):
        ratios = sorted(mine[number] / theirs[number] for mine, theirs in pairs)
        here, there = (statistics.median(pair[side][number] for pair in pairs) for side in (0, 1))
        medians.append(statistics.median(ratios))
        print(
            f"{name}: {here:.1f} s here, {there:.1f} s at {options.base}; ratio {medians[-1]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return int(max(medians) > ALLOWED_RATIO)


if __name__ == "__main__":
    sys.exit(main())
