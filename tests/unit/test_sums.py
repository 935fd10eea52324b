"""What a sum may be off by: the bound that is called true of every order is, for the worst orders that can be found; the screen is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from verifier.core.limits import UNIT
from verifier.operators.order import ORDERS, dot, total
from verifier.operators.rounding import any_order, gamma, likely, rounded

Floats = NDArray[np.float32]
ROWS = 8
TERMS = (64, 257, 768, 4096, 11008)


def _random(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    return g.standard_normal((ROWS, k)).astype(np.float32), g.standard_normal((ROWS, k)).astype(np.float32)


def _same_sign(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    a, b = _random(g, k)
    return abs(a), abs(b)


def _ascending(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    a, b = _same_sign(g, k)
    return np.sort(a, axis=1), np.sort(b, axis=1)


def _descending(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    a, b = _ascending(g, k)
    return a[:, ::-1].copy(), b[:, ::-1].copy()


def _one_large(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    """An addend of 1, and behind it those that it swallows, one after the other."""
    a = np.full((ROWS, k), 0.99 * UNIT, np.float32) * g.uniform(0.9, 1, (ROWS, k)).astype(np.float32)
    a[:, 0] = 1
    return a, np.ones_like(a)


def _attention(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    """A sink that takes half of the weight, and the rest in parts that hardly count, times values of one sign."""
    weights = np.exp(g.standard_normal((ROWS, k)) * 2).astype(np.float32)
    weights /= 2 * weights.sum(1, keepdims=True)
    weights[:, 0] = 0.5
    return weights, g.uniform(0.9, 1, (ROWS, k)).astype(np.float32)


def _alternating(g: np.random.Generator, k: int) -> tuple[Floats, Floats]:
    a, b = _descending(g, k)
    a[:, 1::2] *= -1
    return a, b


KINDS = (_random, _same_sign, _ascending, _descending, _one_large, _attention, _alternating)


def _one_by_one(a: Floats, b: Floats) -> Floats:
    made = np.zeros(len(a), np.float32)
    for k in range(a.shape[1]):
        made = made + a[:, k] * b[:, k]
    return made


def _fused(a: Floats, b: Floats) -> Floats:
    made = np.zeros(len(a), np.float32)
    for k in range(a.shape[1]):
        made = (made + a[:, k].astype(np.float64) * b[:, k]).astype(np.float32)
    return made


def _backwards(a: Floats, b: Floats) -> Floats:
    return _fused(a[:, ::-1], b[:, ::-1])


def _pairwise(a: Floats, b: Floats) -> Floats:
    parts = a * b
    while parts.shape[1] > 1:
        left, right = parts[:, ::2], parts[:, 1::2]
        parts = np.concatenate([left[:, : right.shape[1]] + right, left[:, right.shape[1] :]], axis=1)
    return parts[:, 0]


def _blocked(a: Floats, b: Floats) -> Floats:
    made = np.zeros(len(a), np.float32)
    for begin in range(0, a.shape[1], 64):
        made = made + _fused(a[:, begin : begin + 64], b[:, begin : begin + 64])
    return made


def _in_lanes(a: Floats, b: Floats) -> Floats:
    lanes = np.stack([_one_by_one(a[:, lane::16], b[:, lane::16]) for lane in range(16)], axis=1)
    return _pairwise(lanes, np.ones_like(lanes))


SUMS: tuple[Callable[[Floats, Floats], Floats], ...] = (_one_by_one, _fused, _backwards, _pairwise, _blocked, _in_lanes)


def _worst(a: Floats, b: Floats, add: Callable[[Floats, Floats], Floats]) -> float:
    """How far a sum is off at most, as a share of the sum of its magnitudes. fp64 holds the products, fsum their sum."""
    products = a.astype(np.float64) * b
    exact = np.array([math.fsum(row) for row in products])
    return float((abs(add(a, b).astype(np.float64) - exact) / abs(products).sum(1)).max())


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_order_exceeds_the_bound(
    kind: Callable[[np.random.Generator, int], tuple[Floats, Floats]], terms: int
) -> None:
    """Whatever is summed, and however."""
    a, b = kind(np.random.default_rng(terms), terms)
    for add in SUMS:
        assert _worst(a, b, add) <= any_order(terms), add


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400), st.integers(0, 1 << 30), st.sampled_from(KINDS), st.sampled_from(SUMS), st.integers(-40, 40)
)
def test_no_drawn_order_exceeds_the_bound(
    terms: int,
    seed: int,
    kind: Callable[[np.random.Generator, int], tuple[Floats, Floats]],
    add: Callable[[Floats, Floats], Floats],
    power: int,
) -> None:
    """Any length, any magnitude, in an order that was shuffled."""
    g = np.random.default_rng(seed)
    a, b = kind(g, terms)
    shuffled = g.permutation(terms)
    assert _worst(a[:, shuffled] * np.float32(2.0**power), b[:, shuffled], add) <= any_order(terms)


def test_screen_is_no_bound() -> None:
    """Roundings of one sign leave it; so does the row of attention weights that the runtime summed, 768 products one after the other."""
    a, b = _one_large(np.random.default_rng(0), 768)
    assert likely(768) < _worst(a, b, _fused) <= any_order(768)
    exact, runtime = 0.5070738420, 0.5070691705
    assert likely(768) * exact < abs(runtime - exact) <= any_order(768) * exact


def test_screen_never_exceeds_the_bound() -> None:
    """For a few terms the bound is the smaller one."""
    assert all(0 < likely(k) <= any_order(k) for k in range(1, 2000))
    assert likely(4) == gamma(4)
    assert likely(11008) < any_order(11008) / 20


def test_orders_are_the_kernels() -> None:
    """The orders of the interpreter give the bits of those that are spelled out here."""
    a, b = _attention(np.random.default_rng(3), 257)
    for order, add in zip(ORDERS, (_fused, _one_by_one, None), strict=True):
        made = dot(torch.from_numpy(a)[:, None], torch.from_numpy(b)[..., None], order)[:, 0, 0].numpy()
        if add is not None:
            assert np.array_equal(made, add(a, b))
        exact = dot(torch.from_numpy(a)[:, None], torch.from_numpy(b)[..., None])[:, 0, 0].numpy()
        assert not np.array_equal(made, exact)
        assert np.allclose(made, exact, rtol=1e-5)
    x = torch.from_numpy(a)
    assert torch.equal(total(x, ORDERS[1])[:, 0], torch.from_numpy(_one_by_one(a, np.ones_like(a))))


def test_rounding_of_exact_operands_counts_once() -> None:
    """With the very same operands a correctly rounded operation gives the same; with others both sides round."""
    out = torch.ones(1, dtype=torch.float64)
    assert float(rounded(out, torch.zeros_like(out))) == UNIT
    assert float(rounded(out, torch.full_like(out, 1e-6))) >= 1e-6 + 2 * UNIT
