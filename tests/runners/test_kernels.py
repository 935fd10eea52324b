"""The C++ runner's `llama` kernels against the wheel's own: lengths, positions, grouped heads, beyond capacity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verifier.core import upstream
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner
from verifier.runner.protocol import Bundle, Call, Part, Result

pytestmark = pytest.mark.xdist_group("runner")
CAPACITY = 768
LENGTHS = (1, 2, 33, 192, 576)
SHAPES = {"multi-head": (4, 4, 64), "grouped": (8, 2, 32), "odd width": (3, 1, 20)}
"""Query heads, groups, head_dim."""
ALLOWED = 1e-6
"""Relative: norm of the difference to the wheel's result, and largest difference to fp64. Measured: 4.8e-7 and 7.2e-7. The
wheel's largest difference to fp64 is 1.4e-6, so elements of the two may be 1.2e-6 apart."""


def _export(path: Path, heads: int, groups: int, width: int) -> None:
    """A program of the two operators alone; its caches are given and taken back, so that both can be looked at."""
    from executorch.exir import to_edge

    upstream.CUSTOM_OPERATORS.resolve()

    class Attention(torch.nn.Module):
        def forward(self, q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, position: Any) -> Any:
            start = position[0].item()
            torch._check_is_size(start)
            torch._check(start <= CAPACITY)
            k_cache, v_cache = k_cache * 1.0, v_cache * 1.0
            torch.ops.llama.update_cache(k, k_cache, start)
            torch.ops.llama.update_cache(v, v_cache, start)
            return torch.ops.llama.custom_sdpa(q, k_cache, v_cache, start, None, 0, True), k_cache, v_cache

    q = torch.zeros(1, 5, heads, width)
    k, v = (torch.zeros(1, 5, groups, width) for _ in range(2))  # export takes one tensor given twice for one input
    k_cache, v_cache = (torch.zeros(1, CAPACITY, groups, width) for _ in range(2))
    length = torch.export.Dim("length", min=1, max=CAPACITY)
    shapes = ({1: length}, {1: length}, {1: length}, None, None, None)
    exported = torch.export.export(
        Attention(), (q, k, v, k_cache, v_cache, torch.tensor([3])), dynamic_shapes=shapes, strict=True
    )
    with path.open("wb") as file:
        to_edge(exported).to_executorch().write_to_file(file)


@pytest.fixture(scope="module", params=list(SHAPES))
def attention(
    request: pytest.FixtureRequest, once: Callable[[str, Callable[[Path], None]], Path]
) -> tuple[Path, tuple[int, int, int]]:
    """The program of one shape."""
    shape = SHAPES[request.param]
    folder = once(f"attention-{request.param}", lambda folder: _export(folder / "attention.pte", *shape))
    return folder / "attention.pte", shape


def _rows(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Queries, keys and values of as many tokens as there is room for."""
    heads, groups, width = shape
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, CAPACITY, n, width)).astype(np.float32) for n in (heads, groups, groups)]


def _cache(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Caches full of other rows: what a position does not overwrite is seen as it is."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((1, CAPACITY, shape[1], shape[2])).astype(np.float32) for _ in range(2)]


def _exact(length: int, start: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Causal attention in fp64, [S, H, D]."""
    heads, groups, width = shape
    rows = [row[0, :length].astype(np.float64) for row in _rows(shape)]
    keys, values = (cache[0].astype(np.float64) for cache in _cache(shape))
    keys[start : start + length], values[start : start + length] = rows[1], rows[2]
    unseen = np.arange(CAPACITY)[None] > start + np.arange(length)[:, None]
    made = np.zeros((length, heads, width))
    for head in range(heads):
        group = head // (heads // groups)
        scores = np.where(unseen, -np.inf, rows[0][:, head] @ keys[:, group].T / np.sqrt(width))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        made[:, head] = weights / weights.sum(1, keepdims=True) @ values[:, group]
    return made


def _run(pte: Path, native: NativeRunner, cases: list[tuple[int, int]], shape: tuple[int, int, int]) -> list[Result]:
    rows, cache = _rows(shape), _cache(shape)
    parts = (Part(1, 1, CAPACITY), Part(2, 1, CAPACITY))
    calls = [
        Call(
            "forward", (*(r[:, :s] for r in rows), *cache, np.array([p])), may_fail=True, further=parts if s > 1 else ()
        )
        for s, p in cases
    ]
    return [r.run(Bundle(pte, tuple(calls)), timeout_s=300) for r in (LocalRunner(), native)]


def test_attention_and_cache_are_those_of_the_wheel(
    attention: tuple[Path, tuple[int, int, int]], native: NativeRunner
) -> None:
    """Every length at the edges and in between; a single token at every 16th position and all the last ones."""
    starts = (0, 1, 31, 32, 33, 191, 192, 400, 575, 576, 735, 766, 767)
    cases = [(s, p) for s in LENGTHS for p in starts if s + p <= CAPACITY]
    cases += [(1, p) for p in (*range(0, CAPACITY, 16), *range(760, CAPACITY))]
    cases += [(s, CAPACITY - s) for s in LENGTHS]
    wheel, ours = _run(attention[0], native, cases, attention[1])
    assert (wheel.outcome, ours.outcome) == ("ok", "ok"), (wheel.message, ours.message)
    assert wheel.errors == ours.errors == {}
    for call, (s, p) in enumerate(cases):
        expected, actual = wheel.outputs[call], ours.outputs[call]
        assert actual.shape == expected.shape
        assert np.linalg.norm(actual - expected) <= ALLOWED * np.linalg.norm(expected)
        exact = _exact(s, p, attention[1])
        assert np.abs(actual[0] - exact).max() <= ALLOWED * np.abs(exact).max()
    assert wheel.further.keys() == ours.further.keys()
    rows = _rows(attention[1])
    for call, (s, p) in enumerate(cases):
        if s > 1:
            for place in range(2):
                assert np.array_equal(ours.further[call, place][:, p : p + s], rows[1 + place][:, :s])
    assert all(np.array_equal(wheel.further[key], ours.further[key]) for key in wheel.further)


def test_beyond_capacity_both_refuse(attention: tuple[Path, tuple[int, int, int]], native: NativeRunner) -> None:
    """One row too many, from several starts: an error of the call, and the next call is answered."""
    cases = [(2, 767), (33, 736), (576, 193), (1, 768), (1, 0)]
    wheel, ours = _run(attention[0], native, cases, attention[1])
    assert list(ours.errors) == [0, 1, 2, 3]
    assert list(wheel.errors) == list(ours.errors)
    assert 4 in ours.outputs
