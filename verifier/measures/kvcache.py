"""Bundles that ask the KV-cache questions whose answers need no reference.

Logits are compared between calls of the shipped program. Rows of the cache are read from a copy of it that returns its
caches besides the logits, and set in one that takes them too (`verifier.artifact.rewire`): the same instructions, payloads
and constants.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from verifier.artifact.program import Artifact
from verifier.artifact.rewire import rewire
from verifier.audit.caches import find_caches
from verifier.audit.records import Cache
from verifier.core.errors import ArtifactError
from verifier.core.types import Missing
from verifier.families.conventions import DECODER
from verifier.families.driver import Caller, Script, ids_array
from verifier.measures.paired_calls import PROMPT_TOKENS, PairedCalls, one_result, random_tokens
from verifier.measures.probes import (
    MASKED,
    PERTURBED,
    POISONS,
    SPLITS,
    Asked,
    CacheEvidence,
    CacheRows,
    Pair,
    beyond,
    chunk_name,
)
from verifier.operators.operator import UnknownOperationError
from verifier.operators.registry import OPERATORS
from verifier.runner.protocol import Array, Bundle, Part, Result

SIZES = (1, 2, 31, 32, 33, 191, 192, 193)
STEPS = 4
HUGE = 1e30
POISONED = (1, 5)
"""Tokens in the chunks that are fed behind poison."""
TAIL_OF_LARGE, ROWS_OF_LARGE, PERTURBED_OF_LARGE = 64, 128, (0, 31, 41, 63)
"""Of a large model: the last positions, which are cut into chunks behind a prefix that all cuts share; rows that are read; tokens that
are perturbed. Two AVX2 cores prefill 7B at 4.5 tokens/s, 12 cuts of 768 tokens take half an hour there."""


class Run(Protocol):
    """Runs a bundle."""

    def __call__(self, bundle: Bundle) -> Result:
        """Carry it out; see `runner.protocol`."""
        ...


Measure = Callable[[Asked, tuple[Cache, ...]], CacheRows]
"""From rows as they were returned to what checks look at."""
UNREAD = Missing("the cache cannot be set: the copy of the program with readable caches did not run", "verifier")


def splits(limit: int) -> dict[str, tuple[int, ...]]:
    """Ways to cut `limit` tokens into chunks, by name: at the lengths where bugs sat, and at random."""

    def filled(sizes: list[int]) -> tuple[int, ...]:
        kept: list[int] = []
        for size in sizes:
            if sum(kept) + size < limit:
                kept.append(size)
        return (*kept, limit - sum(kept))

    rng = np.random.default_rng(limit)
    drawn = [[int(size) for size in rng.integers(1, max(2, limit // 3), 64)] for _ in range(3)]
    wanted: tuple[list[int], ...] = (
        [],
        list(SIZES),
        list(reversed(SIZES)),
        [35, 576],
        [575, 1, 1],
        [577, 1],
        [33] * (limit // 33),
        [limit - 1],
        [1],
        *drawn,
    )
    return {name: filled(sizes) for name, sizes in zip(SPLITS, wanted, strict=True)}


def ask_cache(
    artifact: Artifact,
    caller: Caller,
    table: Array,
    image: Array,
    run: Run,
    *,
    measure: Measure,
    in_chunks: bool = True,
    large: bool = False,
) -> CacheEvidence:
    """Ask everything, or all but the many calls in chunks. `table` [V, D] are token embeddings, `image` a picture uint8 [3, h, w]. A `large` model is asked the same with fewer tokens. `measure` is given the rows of the caches, which are not kept."""
    limit = artifact.max_seq_len
    tokens = random_tokens(table, limit + 8, seed=0)
    others = random_tokens(table, limit + 8, seed=1)
    unasked = Missing("no check asked for the whole cache in chunks", "unasked")
    chunks = _ask(run, artifact.path, _chunks(caller, tokens, limit, large=large)) if in_chunks else unasked
    capacity = _ask(run, artifact.path, _capacity(caller, tokens, limit, large=large)) if in_chunks else unasked
    use = _ask(run, artifact.path, _use(caller, tokens, others, image, limit))
    made = partial(CacheEvidence, limit, chunks=chunks, capacity=capacity, use=use, poisons=poisons(artifact))
    try:
        caches = find_caches(artifact)
    except (ArtifactError, UnknownOperationError) as error:
        unread, unset = (
            Missing(said, "verifier") for said in (error.one_line, f"the cache cannot be set: {error.one_line}")
        )
        # caches that are read and are not a LLaVA's are the program's fault; an instruction that nobody here can read is not
        caches_unread = replace(unread, culprit="program") if isinstance(error, ArtifactError) else unread
        return made(caches=caches_unread, rows=unread, poison=unset)
    with tempfile.TemporaryDirectory(prefix="verifier-rewired-") as folder:
        reading, writing = Path(folder) / "read.pte", Path(folder) / "write.pte"
        numbers = [cache.value for cache in caches]
        rewire(artifact, reading, DECODER, outputs=numbers)
        rows = _ask(run, reading, _rows(caller, tokens, others, caches, limit, large=large))
        rewire(artifact, writing, DECODER, inputs=numbers)
        held = [rows.result.further.get((rows.marks["prompt"], place)) for place in range(len(caches))]
        if any(part is None for part in held):
            return made(caches=caches, rows=measure(rows, caches), poison=UNREAD)
        prompt = [np.asarray(part) for part in held]
        asked = partial(_poison, caller, tokens, caches, prompt)
        poison = _ask_poison(run, writing, asked, poisons(artifact), apart=large)
    return made(caches=caches, rows=measure(rows, caches), poison=poison)


def poisons(artifact: Artifact) -> dict[str, float]:
    """Values for the rows beyond the position. Attention that masks by arithmetic multiplies every row by its weight, and
    0 x NaN is NaN: there -1e30 stands in for NaN."""
    masked = not any(operator.attends for operator in OPERATORS.known(artifact.methods[DECODER].operators))
    return dict(zip(POISONS, (-HUGE if masked else float("nan"), HUGE), strict=True))


def _ask(run: Run, pte: Path, asked: tuple[PairedCalls, dict[str, int]]) -> Asked:
    paired, marks = asked
    return Asked(run(Bundle(pte, tuple(paired.script.calls))), tuple(paired.pairs), marks)


def one_by_one(ends: Iterable[int]) -> dict[int, int]:
    """Sizes of chunks, by the position at which each ends, so that the token before each of `ends` is a chunk of its own."""
    sizes: dict[int, int] = {}
    position = 0
    for end in sorted(set(ends)):
        if end - 1 > position:
            sizes[end - 1] = end - 1 - position
        sizes[end] = 1
        position = end
    return sizes


def _chunks(caller: Caller, tokens: Array, limit: int, *, large: bool) -> tuple[PairedCalls, dict[str, int]]:
    """Token by token to the limit, of a `large` model where chunks end; then the same tokens in every split, each chunk's end
    against that. All splits of a large model but the whole begin behind one prefix, which they leave in the cache."""
    paired, shared = PairedCalls(Script(caller)), max(0, limit - TAIL_OF_LARGE) if large else 0
    cut = {name: (shared, sizes) for name, sizes in splits(limit - shared).items()}
    whole = SPLITS[0]
    cut[whole] = (0, splits(limit)[whole])
    ends = (
        range(1, limit + 1)
        if not large
        else (first + end for first, sizes in cut.values() for end in accumulate(sizes))
    )
    single = one_by_one(ends)
    alone = dict(zip(single, paired.chunks(tokens, single.values()), strict=True))
    for name, (first, sizes) in cut.items():
        position = first
        for size in sizes:
            call = paired.feed(tokens[position : position + size], position)
            position += size
            paired.same(name, call, alone[position], position - 1)
    return paired, {"last one": alone[limit]}


def _capacity(caller: Caller, tokens: Array, limit: int, *, large: bool) -> tuple[PairedCalls, dict[str, int]]:
    """One past the end from many starts, each behind a fresh prompt whose next token is asked before and after.

    What lies behind the start of a refused chunk may have been written; what lies before it must not. A `large` model gets its prompt again
    only where something before its end may have been.
    """
    paired, marks = PairedCalls(Script(caller)), {}
    held = 0
    for start, size in beyond(limit):
        intact = min(start, PROMPT_TOKENS)
        if intact and not (large and held == intact == PROMPT_TOKENS):
            paired.feed(tokens[:intact], keep=False)
        before = paired.feed(tokens[intact : intact + 1], intact)
        marks[chunk_name(start, size)] = paired.feed(tokens[start : start + size], start, may_fail=True)
        after = paired.feed(tokens[intact : intact + 1], intact)
        held = intact if start > intact else 0
        paired.same(chunk_name(start, size), after, before, intact)
    return paired, marks


def _use(caller: Caller, tokens: Array, others: Array, image: Array, limit: int) -> tuple[PairedCalls, dict[str, int]]:
    """A prompt and a few tokens behind it: in a fresh process, then with other histories and company."""
    paired = PairedCalls(Script(caller))
    prompt, end = tokens[:PROMPT_TOKENS], PROMPT_TOKENS + STEPS

    def steps() -> list[int]:
        return [paired.feed(tokens[at : at + 1], at) for at in range(PROMPT_TOKENS, end)]

    def agree(case: str, actual: list[int], expected: list[int]) -> None:
        for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
            paired.same(case, a, e, end - len(actual) + number)

    fresh = [paired.feed(prompt), *steps()]
    paired.chunks(others, [limit], keep=False)
    agree("after a full cache", [paired.feed(prompt), *steps()], fresh)
    again = [paired.feed(prompt)]
    for at in range(PROMPT_TOKENS, end):
        paired.script.encode(image, keep=False)
        paired.script.embed(ids_array([3, 4, 5]))
        again.append(paired.feed(tokens[at : at + 1], at))
    agree("other methods in between", again, fresh)
    paired.feed(others[:PROMPT_TOKENS], instance=1, keep=False)
    again = [paired.feed(prompt)]
    for at in range(PROMPT_TOKENS, end):
        paired.feed(others[at : at + 1], at, instance=1, keep=False)
        again.append(paired.feed(tokens[at : at + 1], at))
    agree("another instance", again, fresh)
    paired.feed(others[end : end + 20], end, keep=False)
    agree("rewind behind the prompt", steps(), fresh[1:])
    head, tail = tokens[:20], others[20:PROMPT_TOKENS]
    paired.feed(head, keep=False)
    straight = [paired.feed(tail, 20), *steps()]
    paired.feed(head, keep=False)
    paired.feed(tokens[20:PROMPT_TOKENS], 20, keep=False)
    paired.feed(tokens[PROMPT_TOKENS:end], PROMPT_TOKENS, keep=False)
    agree("rewind into the prompt", [paired.feed(tail, 20), *steps()], straight)
    return paired, {"next": fresh[1]}


def _rows(
    caller: Caller, tokens: Array, others: Array, caches: tuple[Cache, ...], longest: int, *, large: bool
) -> tuple[PairedCalls, dict[str, int]]:
    """Caches after whole prompts in two splits, of tokens moved by one, of one token repeated; and after perturbations."""
    paired, marks = PairedCalls(Script(caller)), {}
    limit = min(longest, ROWS_OF_LARGE) if large else longest

    def parts(length: int) -> tuple[Part, ...]:
        return tuple(Part(1 + place, cache.axis, length) for place, cache in enumerate(caches))

    def whole(embeddings: Array) -> int:
        return paired.feed(embeddings[:limit], keep=False, parts=parts(limit))

    marks["whole"] = whole(tokens)
    sizes = splits(limit)["1, 2, 31, …"]
    paired.chunks(tokens, sizes[:-1], keep=False)
    start = limit - sizes[-1]
    marks["split"] = paired.feed(tokens[start:limit], start, keep=False, parts=parts(limit))
    marks["moved"] = whole(np.concatenate([others[:1], tokens[: limit - 1]]))
    marks["repeated"] = whole(np.repeat(tokens[:1], limit, axis=0))
    marks["prompt"] = paired.feed(tokens[:PROMPT_TOKENS], keep=False, parts=parts(PROMPT_TOKENS))
    first, total = MASKED[0], sum(MASKED)
    perturbed = PERTURBED_OF_LARGE if large else PERTURBED
    for name, place in {"unperturbed": None, **{f"perturbed {at}": at for at in perturbed}}.items():
        given = tokens[:total].copy()
        if place is not None:
            given[place] = others[place]
        paired.feed(given[:first], keep=False)
        marks[name] = paired.feed(given[first:], first, keep=False, parts=parts(total))
    return paired, marks


def _poisoned(cache: Cache, rows: Array, value: float) -> Array:
    """A cache with the prompt's rows, and `value` in all rows behind it."""
    filled = np.full(cache.sizes, value, np.float32)
    index = [slice(None)] * 4
    index[cache.axis] = slice(0, rows.shape[cache.axis])
    filled[tuple(index)] = rows
    return filled


def _poison(
    caller: Caller, tokens: Array, caches: tuple[Cache, ...], prompt: list[Array], values: Iterable[float]
) -> tuple[PairedCalls, dict[str, int]]:
    """The next token, and the next five as a chunk, behind a prompt whose cache holds a value beyond it, for each value."""
    paired = PairedCalls(Script(caller))
    for value in values:
        filled = tuple(_poisoned(cache, rows, value) for cache, rows in zip(caches, prompt, strict=True))
        for size in POISONED:
            paired.feed(tokens[PROMPT_TOKENS : PROMPT_TOKENS + size], PROMPT_TOKENS, caches=filled)
    return paired, {}


def _ask_poison(
    run: Run,
    pte: Path,
    poison: Callable[[Iterable[float]], tuple[PairedCalls, dict[str, int]]],
    values: dict[str, float],
    *,
    apart: bool,
) -> Asked:
    """Zeros beyond the prompt, then poison. A process gets the caches of all of them, or of one if they are to be held `apart`: those of a 7B
    are 805 MB."""
    every = (0.0, *values.values())
    found: list[Result] = []
    for given in [(value,) for value in every] if apart else [every]:
        found.append(_ask(run, pte, poison(given)).result)
        if found[-1].outcome != "ok":
            break
    pairs = tuple(
        Pair(name, number * len(POISONED) + place, place, PROMPT_TOKENS + size - 1)
        for number, name in enumerate(values, start=1)
        for place, size in enumerate(POISONED)
    )
    return Asked(one_result(found), pairs, {"next": 0})
