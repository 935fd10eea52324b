"""Layer by layer, ours against ExecuTorch's own `tap_compare`: `python -m tests.bench.layers [ROUNDS]`.

The same layers (the vision encoder of llava_tiny on one image), side by side in one run. What they do is not the same:
`tap_compare` exports and lowers the fp32 module anew, with taps in it, and compares that with eager; ours traces the shipped
4.5 MB program with its three methods and int8 weights, and evaluates every instruction from the file's bytes. Theirs cannot
load such a file; so this is the price of an answer about a model, not about the same bytes.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verifier.core import upstream
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint


def _theirs() -> None:
    import torch

    from verifier.families.llava.definition import build_vision_encoder

    encoder = build_vision_encoder(open_checkpoint())
    image = torch.randint(0, 255, (3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    # every element, as ours; without a rule it compares statistics of each tensor
    rules = [(upstream.TAP_ALL.resolve()(), upstream.TAP_WHOLE.resolve())]
    partitioner = upstream.XNNPACK_PARTITIONER.resolve()()
    table, specs = upstream.TAP_COMPARE.resolve()(encoder, (image,), [partitioner], rules=rules)
    worst = table["sqnr_db"].min()
    _report(begun, f"{len(specs)} taps, smallest SQNR {worst:.0f} dB")


def _ours() -> None:
    import torch

    from verifier.artifact.program import open_artifact
    from verifier.interpret.machine import Machine
    from verifier.ladder.gather import SLACK_BYTES, traced_bytes
    from verifier.ladder.limits import excess
    from verifier.ladder.replay import Replayer
    from verifier.ladder.trace import read_trace
    from verifier.runner.local import LocalRunner
    from verifier.runner.protocol import Bundle, Call, TraceRequest

    image = torch.randint(0, 255, (3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    artifact = open_artifact(EMBEDDED / "llava_tiny.pte")
    buffer_bytes = SLACK_BYTES + traced_bytes(Machine(artifact).methods["vision_encoder"], 0, artifact.max_seq_len)
    with tempfile.TemporaryDirectory() as folder:
        trace = TraceRequest(Path(folder), buffer_bytes)
        bundle = Bundle(artifact.path, (Call("vision_encoder", (image.numpy(),)),), trace=trace)
        outcome = LocalRunner().run(bundle, timeout_s=600).outcome
        replayer = Replayer(artifact)
        replayer.call("vision_encoder", [image], read_trace(Path(folder))[0])
    compared = replayer.finish().compared
    _report(begun, f"{outcome}, {len(compared)} results, closest {max(excess(r) for r in compared):.2f} of its limit")


def _report(begun: float, said: str) -> None:
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"RESULT {time.perf_counter() - begun:.2f} {max(peaks) / 1024:.0f} {said}")


def _run(side: str) -> tuple[float, float, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.layers", side], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    _, seconds, mebibytes, said = line.split(maxsplit=3)
    return float(seconds), float(mebibytes), said


def main() -> None:
    """Both in turn; every pair, and the median ratios."""
    if sys.argv[1:2] in (["ours"], ["theirs"]):
        {"ours": _ours, "theirs": _theirs}[sys.argv[1]]()
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    times, peaks = [], []
    for number in range(rounds):
        ours, theirs = _run("ours"), _run("theirs")
        times.append(ours[0] / theirs[0])
        peaks.append(ours[1] / theirs[1])
        print(
            f"round {number + 1}: ours {ours[0]:.1f} s, {ours[1]:.0f} MiB ({ours[2]}); tap_compare {theirs[0]:.1f} s, {theirs[1]:.0f} MiB ({theirs[2]})"
        )
    print(
        f"layers: median ratio {statistics.median(times):.2f} in time, {statistics.median(peaks):.2f} in peak memory, {rounds} rounds"
    )


if __name__ == "__main__":
    main()
