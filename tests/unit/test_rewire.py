"""Caches are found, told apart, read and set; nothing else of a program changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import CALLER, EMBEDDED_PTE
from verifier.artifact.program import Artifact, open_artifact
from verifier.artifact.rewire import rewire
from verifier.audit.caches import find_caches
from verifier.core.errors import ArtifactError
from verifier.families.driver import Script
from verifier.measures.kvcache import _capacity, _chunks, one_by_one, splits
from verifier.measures.paired_calls import PairedCalls
from verifier.measures.probes import SPLITS, beyond
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Part


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """The embedded program."""
    return open_artifact(EMBEDDED_PTE)


def test_caches_of_the_embedded_program(artifact: Artifact) -> None:
    """K and V of four layers, fp32 [1, 768, 4, 64]."""
    caches = find_caches(artifact)
    assert sorted((one.layer, one.kind) for one in caches) == [(layer, kind) for layer in range(4) for kind in "kv"]
    assert {(one.sizes, one.axis) for one in caches} == {((1, 768, 4, 64), 1)}


def test_program_without_caches_is_refused(artifact: Artifact) -> None:
    """A decoder that keeps nothing is not LLaVA's."""
    plan = artifact.plans["text_decoder"]
    steps = tuple(step for step in plan.instructions if step.name != "llama::update_cache.out")
    plans = artifact.plans | {"text_decoder": replace(plan, instructions=steps)}
    with pytest.raises(ArtifactError, match="layout of the text decoder's KV-cache is not known"):
        find_caches(replace(artifact, plans=plans))


def test_rewiring_changes_two_lists_alone(artifact: Artifact, tmp_path: Path) -> None:
    """Instructions, EValues and constants stay; other methods too."""
    numbers = [one.value for one in find_caches(artifact)]
    rewire(artifact, tmp_path / "both.pte", "text_decoder", inputs=numbers, outputs=numbers)
    made = open_artifact(tmp_path / "both.pte")
    for name, plan in artifact.plans.items():
        more = tuple(numbers) if name == "text_decoder" else ()
        assert (made.plans[name].inputs, made.plans[name].outputs) == ((*plan.inputs, *more), (*plan.outputs, *more))
        assert made.plans[name].instructions == plan.instructions
        assert len(made.plans[name].values) == len(plan.values)
    spans = [storage.segments for storage in (made.storage, artifact.storage)]
    assert all((made.storage.read(a) == artifact.storage.read(b)).all() for a, b in zip(*spans, strict=True))


def test_cache_is_read_and_set_by_the_runtime(artifact: Artifact, tmp_path: Path) -> None:
    """Rows written by one program go into another, which answers as the first one would have."""
    caches = find_caches(artifact)
    numbers = [one.value for one in caches]
    rewire(artifact, tmp_path / "read.pte", "text_decoder", outputs=numbers)
    rewire(artifact, tmp_path / "write.pte", "text_decoder", inputs=numbers)
    tokens = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32) * 0.1
    parts = tuple(Part(1 + place, one.axis, 8) for place, one in enumerate(caches))
    paired = PairedCalls(Script(CALLER))
    first = paired.feed(tokens[:8], parts=parts)
    after = paired.feed(tokens[8:], 8)
    read = LocalRunner().run(Bundle(tmp_path / "read.pte", tuple(paired.script.calls)), timeout_s=60)
    assert read.outcome == "ok"
    filled = []
    for place, one in enumerate(caches):
        held = read.further[first, place]
        assert held.shape == (1, 8, 4, 64)
        assert np.abs(held).max((0, 2, 3)).min() > 0
        whole = np.zeros(one.sizes, np.float32)
        whole[:, :8] = held
        filled.append(whole)
    paired = PairedCalls(Script(CALLER))
    paired.feed(tokens[8:], 8, caches=tuple(filled))
    written = LocalRunner().run(Bundle(tmp_path / "write.pte", tuple(paired.script.calls)), timeout_s=60)
    assert np.array_equal(written.outputs[0], read.outputs[after])


@pytest.mark.parametrize("limit", [2, 16, 128, 577, 768, 2048])
def test_splits_fill_the_limit(limit: int) -> None:
    """Chunks of at least one token that add up to the limit, whatever it is; one past it from every start."""
    assert tuple(splits(limit)) == SPLITS
    assert all(sum(sizes) == limit and min(sizes) >= 1 for sizes in splits(limit).values())
    assert all(start + size == limit + 1 for start, size in beyond(limit))
    assert (limit, 1) in beyond(limit)
    assert len(beyond(limit)) == len(set(beyond(limit)))


def test_large_models_are_asked_the_same_with_fewer_tokens() -> None:
    """Every split, every chunk's end against a token that came alone, at the same position, to the limit."""
    assert one_by_one([1, 5, 6]) == {1: 1, 4: 3, 5: 1, 6: 1}
    assert one_by_one(range(1, 5)) == dict.fromkeys(range(1, 5), 1)
    tokens = np.ones((768, 4), np.float32)
    (every, _), (some, _) = (_chunks(CALLER, tokens, 768, large=large) for large in (False, True))
    for paired in (every, some):
        assert {pair.case for pair in paired.pairs} == set(SPLITS)
        assert {pair.case for pair in paired.pairs if pair.position == 767} == set(SPLITS)
    assert _tokens(some) < _tokens(every) / 4
    for pair in some.pairs:
        embeddings, start = some.script.calls[pair.expected].inputs[:2]
        assert np.shape(embeddings) == (1, 1, 4)
        assert int(np.asarray(start)[0]) == pair.position


def _tokens(paired: PairedCalls) -> int:
    return sum(np.shape(call.inputs[0])[1] for call in paired.script.calls)


@pytest.mark.parametrize("large", [False, True])
def test_refused_chunks_are_asked_behind_a_prompt_that_is_there(large: bool) -> None:
    """Wherever a chunk may have written, the rows before the token that is asked are fed again."""
    paired, marks = _capacity(CALLER, np.ones((776, 4), np.float32), 768, large=large)
    asked = set(marks.values())
    held = 0
    for number, call in enumerate(paired.script.calls):
        start, size = int(np.asarray(call.inputs[1])[0]), np.shape(call.inputs[0])[1]
        assert start <= held or number in asked
        held = min(held, start) if number in asked else max(held, start + size) if start <= held else held
    assert len(marks) == len(beyond(768))
