"""XNNPACK nodes that a clean LLaVA does not have, and a wrong export may."""

from __future__ import annotations

from typing import Any

import torch

from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.xnnpack.arithmetic import (
    EXACT_GROUP,
    centred_rows,
    dequantize_rows,
    multiply_groups,
    quantize_rows,
)
from verifier.backends.xnnpack.run import run_graph


def _clamping(limits: tuple[float, float] | None) -> Graph:
    values = {
        id: GraphValue(id, "fp32", (4,), None, None, external)  # type: ignore[arg-type]
        for id, external in ((0, 0), (1, 1))
    }
    node = Node(0, "XNNClamp", (0,), 1, {}, limits)
    return Graph((node,), values, (0,), (1,))


def test_clamp_cuts_off_and_keeps_its_bound() -> None:
    """What lies within its limits, or has none, goes through; the error bound of the input goes through too."""
    x = torch.tensor([-3.0, -0.5, 0.25, 9.0])
    storage: Any = None
    bounds: dict[int, torch.Tensor] = {0: torch.full((4,), 1e-6)}
    (made,) = run_graph(_clamping((-1.0, 2.0)), storage, [x], bounds=bounds)
    assert made.tolist() == [-1.0, -0.5, 0.25, 2.0]
    assert torch.allclose(bounds[1], torch.full((4,), 1e-6))
    for limits in (None, (float("-inf"), float("inf"))):
        assert not _clamping(limits).nodes[0].clamps
        assert torch.equal(run_graph(_clamping(limits), storage, [x])[0], x)


def test_groups_are_summed_exactly() -> None:
    """Integers of 8 times 4 bits, the worst a group can hold: what fp64 throughout gives, to its last bits; an element that is one off
    is seen."""
    generator = torch.Generator().manual_seed(0)
    for size, count in ((EXACT_GROUP // 32 * 32, 2), (128, 8), (32, 3)):
        rows = quantize_rows(torch.randn(5, size * count, generator=generator))
        weights = torch.randint(-8, 8, (7, size * count), generator=generator)
        weights[0] = -8
        scales = torch.rand(7, count, generator=generator).bfloat16().float()
        extreme = torch.full((1, size * count), 255.0)
        x = torch.cat([centred_rows(rows), extreme, -extreme])
        real = weights.double() * scales.double().repeat_interleave(size, 1)
        made, expected = multiply_groups(x, weights.float(), scales), x.double() @ real.T
        assert torch.allclose(made, expected, rtol=1e-13, atol=1e-9)
        wrong = weights.clone()
        wrong[3, 1] += 1
        assert not torch.allclose(multiply_groups(x, wrong.float(), scales)[:, 3], expected[:, 3], rtol=1e-7, atol=0)
        whole = (made[:5] * rows.scale.double()).float()
        assert torch.allclose(whole, (dequantize_rows(rows) @ real.T).float(), rtol=1e-6)
