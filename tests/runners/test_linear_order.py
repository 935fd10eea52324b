"""4-bit linears whose fp32 rounding shows: exact sums are not what the runtime has, its kernel's own order is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support import sqnr_db
from verifier.backends.xnnpack.arithmetic import (
    centred_rows,
    multiply_groups,
    multiply_in_order,
    quantize_rows,
)
from verifier.core import upstream
from verifier.core.types import Scheme
from verifier.export.quantize import quantize_linear
from verifier.ladder.limits import LINEAR
from verifier.operators.order import ORDERS
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call

pytestmark = pytest.mark.xdist_group("runner")
CHANNELS, OUTPUTS, GROUP, TOKENS = 4096, 64, 128, 17


def _linear() -> nn.Linear:
    """4-bit, with groups that differ in size."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.exp(0.7 * torch.randn(OUTPUTS, CHANNELS // GROUP, generator=generator)).repeat_interleave(GROUP, 1)
    linear = nn.Linear(CHANNELS, OUTPUTS, bias=False)
    linear.weight = nn.Parameter(
        0.02 * sizes * torch.randn(OUTPUTS, CHANNELS, generator=generator), requires_grad=False
    )
    quantize_linear(linear, "linear", scheme=Scheme(GROUP))
    return linear


def _weights() -> tuple[Tensor, Tensor]:
    """Its integers [N, K], and its scales [N, G] as XNNPACK holds them."""
    weight: Any = _linear().weight
    return weight.qdata, weight.scale.bfloat16().float().reshape(OUTPUTS, -1)


def _given() -> Tensor:
    """Activations with heavy tails and one large channel: the zero point lies far from the rest."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(TOKENS, CHANNELS, generator=generator) * torch.randn(TOKENS, CHANNELS, generator=generator) ** 2
    x[:, 5] = -90.0
    return x


def _export(folder: Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(
        _linear(), (_given(),), dynamic_shapes=({0: torch.export.Dim("tokens", min=1, max=64)},)
    )
    dynamic = upstream.XNNPACK_PRECISIONS.resolve().DYNAMIC_QUANT
    one_by_one = upstream.XNNPACK_PARTITIONER.resolve()(config_precisions=dynamic, per_op_mode=True)
    edge = to_edge_transform_and_lower(
        exported, partitioner=[one_by_one], compile_config=upstream.EDGE_CONFIG.resolve()(_check_ir_validity=False)
    )
    with (folder / "linear.pte").open("wb") as file:
        edge.to_executorch().write_to_file(file)


def _answer(once: Callable[[str, Callable[[Path], None]], Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the runtime makes of it, and the features of the CPU."""
    program = once("linear-order", _export) / "linear.pte"
    result = LocalRunner().run(Bundle(program, (Call("forward", (_given().numpy(),)),)), timeout_s=600)
    assert result.outcome == "ok", result.message
    return result.outputs[0], result.cpu_features


def test_order_of_sums_is_the_kernels(once: Callable[[str, Callable[[Path], None]], Path]) -> None:
    """Above the limit in one of the orders, with AVX-512 VNNI and with AVX2 bit for bit; with a weight off by one in none of them."""
    made, features = _answer(once)
    integers, scales = _weights()
    rows = quantize_rows(_given())

    def orders(weights: Tensor) -> dict[tuple[int, int], float]:
        known = [(order.offset, order.pieces) for order in ORDERS]
        made_so = {
            (offset, pieces): multiply_in_order(rows, weights.float(), scales, offset=offset, pieces=pieces).numpy()
            for offset, pieces in known
        }
        return {order: sqnr_db(actual=made, expected=expected) for order, expected in made_so.items()}

    found = orders(integers)
    exact = multiply_groups(centred_rows(rows), integers.float(), scales) * rows.scale.double()
    assert max(found.values()) >= LINEAR.value
    if "avx512_vnni" in features:
        assert found[128, 1] == 400
        assert sqnr_db(actual=made, expected=exact.float().numpy()) < 130
    elif "avx2" in features and not any(name.startswith(("avx512", "avx_vnni")) for name in features):
        assert found[0, 4] == 400
    wrong = integers.clone()
    wrong[7, 1234] ^= 1
    assert max(orders(wrong).values()) < LINEAR.value
