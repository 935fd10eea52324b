"""The same calls again and again, at several thread counts, in one process and in another."""

from __future__ import annotations

import os
from dataclasses import dataclass

from verifier.artifact.program import Artifact
from verifier.families.conventions import DECODER, ENCODER
from verifier.probes.kvcache import Run
from verifier.probes.tape import Tape, random_tokens
from verifier.runner.protocol import Array, Bundle, Result

REPEATS, REPEATS_OF_LARGE = 10, 2
CHUNKS = (33, 15, 1)
"""A prefill that is no multiple of a row tile, a second chunk, a single token."""
CONFIGURATIONS = ("1 thread", "2 threads", "more threads than cores", "another process")
CALLS = (ENCODER, *(f"{DECODER} of {size}" for size in CHUNKS))


@dataclass(frozen=True)
class Repeated:
    """One configuration: `calls[r][c]` is the number of call c of `CALLS` in repetition r."""

    threads: int
    result: Result
    calls: tuple[tuple[int, ...], ...]

    def output(self, repeat: int, call: int) -> Array | None:
        """What a call returned, None if it did not."""
        return self.result.outputs.get(self.calls[repeat][call])


ThreadEvidence = dict[str, Repeated]
"""By configuration; the last one is the second configuration again in a process of its own, cold."""


def ask_threads(artifact: Artifact, table: Array, image: Array, run: Run, *, large: bool = False) -> ThreadEvidence:
    """Run all configurations, those of a `large` model a few times. `table` [V, D] are token embeddings, `image` an input of
    `vision_encoder`."""
    often = REPEATS_OF_LARGE if large else REPEATS
    many = (os.cpu_count() or 1) + 2
    tokens = random_tokens(table, sum(CHUNKS), seed=2)
    found = {}
    for name, threads, repeats in zip(CONFIGURATIONS, (1, 2, many, 2), (often, often, often, 1), strict=True):
        tape = Tape()
        calls = tuple((tape.script.add(ENCODER, image), *tape.chunks(tokens, CHUNKS)) for _ in range(repeats))
        found[name] = Repeated(threads, run(Bundle(artifact.path, tuple(tape.script.calls), threads=threads)), calls)
    return found
