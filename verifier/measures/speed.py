"""How long a conversation takes, in units of a fixed piece of arithmetic on the same machine, and how much memory it needs."""

from __future__ import annotations

from statistics import median

from verifier.artifact.program import Artifact
from verifier.families.driver import Caller, Script
from verifier.measures.kvcache import Run
from verifier.measures.paired_calls import PairedCalls, random_tokens
from verifier.measures.probes import Speed
from verifier.runner.constants import LOOP
from verifier.runner.protocol import Array, Bundle

ROUNDS, ROUNDS_OF_LARGE = 5, 2
DECODED = 8
TEXT = 24
"""Tokens of text around the image."""


def ask_speed(
    artifact: Artifact, caller: Caller, table: Array, image: Array, run: Run, *, patches: int, large: bool = False
) -> Speed:
    """Several rounds in one process: loop, image and prefill, loop, tokens one by one. The first round warms up and does not count."""
    paired = PairedCalls(Script(caller))
    tokens = random_tokens(table, patches + TEXT + DECODED, seed=3)
    first = patches + TEXT
    rounds = []
    for _ in range(1 + (ROUNDS_OF_LARGE if large else ROUNDS)):
        loops = [paired.script.add(LOOP, keep=False)]
        prefill = [paired.script.encode(image, keep=False), paired.feed(tokens[:first], keep=False)]
        loops.append(paired.script.add(LOOP, keep=False))
        decode = [paired.feed(tokens[first + i : first + i + 1], first + i, keep=False) for i in range(DECODED)]
        rounds.append((loops, prefill, decode))
    result = run(Bundle(artifact.path, tuple(paired.script.calls)))
    if result.finished_calls != len(paired.script.calls):
        return Speed(result)
    took = result.call_s
    unit_s = [min(took[call] for call in loops) for loops, _, _ in rounds[1:]]
    prefill_s = [sum(took[call] for call in prefill) for _, prefill, _ in rounds[1:]]
    decode_s = [median(took[call] for call in decode) for _, _, decode in rounds[1:]]
    return Speed(
        result,
        median(p / u for p, u in zip(prefill_s, unit_s, strict=True)),
        median(d / u for d, u in zip(decode_s, unit_s, strict=True)),
        result.peak_rss_bytes,
    )
