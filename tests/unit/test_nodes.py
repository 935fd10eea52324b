"""XNNPACK nodes that a clean LLaVA does not have, and a wrong export may."""

from __future__ import annotations

from typing import Any

import torch

from verifier.artifact.xnnpack import Graph, GraphValue, Node
from verifier.interpret.delegate import run_graph


def _clamping(limits: tuple[float, float] | None) -> Graph:
    values = {
        id: GraphValue(id, "fp32", (4,), None, None, external)  # type: ignore[arg-type]
        for id, external in ((0, 0), (1, 1))
    }
    node = Node(0, "XNNClamp", (0,), 1, {}, limits, 0)
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
