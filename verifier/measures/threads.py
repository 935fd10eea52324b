"""The same calls again and again, at several thread counts, in one process and in another."""

from __future__ import annotations

import os

from verifier.artifact.program import Artifact
from verifier.families.driver import Caller, Script
from verifier.measures.kvcache import Run
from verifier.measures.paired_calls import PairedCalls, random_tokens
from verifier.measures.probes import CHUNKS, CONFIGURATIONS, Repeated, ThreadEvidence
from verifier.runner.protocol import Array, Bundle

REPEATS, REPEATS_OF_LARGE = 10, 2


def ask_threads(
    artifact: Artifact, caller: Caller, table: Array, image: Array, run: Run, *, large: bool = False
) -> ThreadEvidence:
    """Run all configurations, those of a `large` model a few times. `table` [V, D] are token embeddings, `image` a picture uint8 [3, h, w]."""
    often = REPEATS_OF_LARGE if large else REPEATS
    many = (os.cpu_count() or 1) + 2
    tokens = random_tokens(table, sum(CHUNKS), seed=2)
    found = {}
    for name, threads, repeats in zip(CONFIGURATIONS, (1, 2, many, 2), (often, often, often, 1), strict=True):
        paired = PairedCalls(Script(caller))
        calls = tuple((paired.script.encode(image), *paired.chunks(tokens, CHUNKS)) for _ in range(repeats))
        found[name] = Repeated(threads, run(Bundle(artifact.path, tuple(paired.script.calls), threads=threads)), calls)
    return found
