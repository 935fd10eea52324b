"""What probes ask a program, and what came of it, as plain data. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field

from verifier.audit.records import Cache
from verifier.core.compare import Mismatch
from verifier.core.types import Missing
from verifier.families.conventions import DECODER, ENCODER
from verifier.runner.protocol import Array, Result

EDGES = (0, 1, 2, 31, 32, 33, 191, 192, 193, 575, 576, 577)
"""Lengths and positions at which caches and masks have broken (upstream issues of ExecuTorch and llama.cpp)."""
MASKED = (40, 24)
"""Two chunks in which single tokens are perturbed, the second one at a position that is not 0."""
PERTURBED = (0, 1, 31, 32, 39, 40, 41, 62, 63)
POISONS = ("NaN", "huge")
SPLITS = (
    "whole",
    "1, 2, 31, …",
    "193, 192, …",
    "35, 576, rest",
    "575, 1, 1, rest",
    "577, 1, rest",
    "33 each",
    "all but one, 1",
    "1, all but one",
    "random 0",
    "random 1",
    "random 2",
)
HISTORIES = (
    "after a full cache",
    "other methods in between",
    "another instance",
    "rewind behind the prompt",
    "rewind into the prompt",
)
CHUNKS = (33, 15, 1)
"""A prefill that is no multiple of a row tile, a second chunk, a single token."""
CONFIGURATIONS = ("1 thread", "2 threads", "more threads than cores", "another process")
CALLS = (ENCODER, *(f"{DECODER} of {size}" for size in CHUNKS))


@dataclass(frozen=True)
class Pair:
    """Two calls that must give the same logits; `position` is that of the last token."""

    case: str
    actual: int
    expected: int
    position: int


@dataclass(frozen=True)
class Asked:
    """A finished bundle, the calls that must agree, and calls to look at by name."""

    result: Result
    pairs: tuple[Pair, ...] = ()
    marks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WorstRow:
    """The row of a cache that two calls differ in most, as SQNR in dB."""

    sqnr_db: float
    row: int


@dataclass(frozen=True)
class PromptRows:
    """Rows of all caches behind whole prompts of T tokens.

    `split`, by cache: the prompt in chunks of several sizes against the prompt as a whole. Of the V cache of layer 0: `distinct` counts rows that are
    not the one before, and `misplaced` are those whose value, with all tokens moved by one, is not found one row further. Of layer 0 with one token at
    all positions: `unturned` keys are the one before; `apart` [T] is the largest difference of each key, turned back by its position, from the first,
    as a share of the first key's largest number, fp64; `moved_values` are rows of the V cache that are not the first.
    """

    tokens: int
    split: tuple[WorstRow | Mismatch, ...]
    distinct: int
    misplaced: tuple[int, ...]
    unturned: tuple[int, ...]
    apart: Array
    moved_values: tuple[int, ...]


@dataclass(frozen=True)
class PerturbedToken:
    """Rows that changed with one token of a prompt, by cache; None if the caches were not returned."""

    token: int
    changed: tuple[tuple[int, ...] | Mismatch, ...] | None


@dataclass(frozen=True)
class CacheRows:
    """What was measured of rows of the caches."""

    prompts: PromptRows | Missing
    perturbed: tuple[PerturbedToken, ...] | Missing


@dataclass(frozen=True)
class CacheEvidence:
    """All that was asked of the cache. `chunks`, `capacity` and `use` are of the shipped program, `rows` and `poison` of its copies that
    return and take caches. `poisons` are the values that were written beyond the position, by name."""

    limit: int
    caches: tuple[Cache, ...] | Missing
    chunks: Asked | Missing
    capacity: Asked | Missing
    use: Asked
    rows: CacheRows | Missing
    poison: Asked | Missing
    poisons: dict[str, float]


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


@dataclass(frozen=True)
class Speed:
    """`prefill_loops`: an image with text around it; `decode_loops`: one token; both in times of `LOOP`, the median of the rounds.
    None, like the memory, if the calls did not return: `result` says why."""

    result: Result
    prefill_loops: float | None = None
    decode_loops: float | None = None
    peak_rss_bytes: int | None = None


def beyond(limit: int) -> list[tuple[int, int]]:
    """(start, tokens) of chunks that end one past the limit, from the starts where bugs sat; S = 1 is the last."""
    starts = [start for start in (*EDGES, limit - 2, limit - 1) if start < limit]
    return [(start, limit + 1 - start) for start in dict.fromkeys(starts)] + [(limit, 1)]


def chunk_name(start: int, size: int) -> str:
    """The mark of a chunk that is asked beyond the limit."""
    return f"{start} + {size}"
