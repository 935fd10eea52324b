"""The fast search of HQQ's scales gives torchao's integers and scales, bit for bit."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verifier.core.types import Scheme
from verifier.export import hqq, lean
from verifier.export.hqq import hqq_scale_only
from verifier.export.lean import hqq_in_parts
from verifier.export.quantize import quantize_linear, quantize_rows


def _of_torchao(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    holder.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    quantize_linear(holder, "tested", scheme=Scheme(group_size, "hqq", bits))
    quantized = holder.weight
    return quantized.qdata, quantized.scale.reshape(len(weight), -1)  # type: ignore[attr-defined]


def _weights(kind: str, shape: tuple[int, int]) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(len(kind))) * 0.02
    if kind == "outliers":
        weight[::7, ::31] *= 40
    if kind == "zeros":
        weight[3:5] = 0
    if kind == "settled":  # integers times a scale: the search ends early, for all
        weight = weight.mul(200).round().clamp(-7, 7) * 0.25
    if kind == "bf16":
        weight = weight.to(torch.bfloat16)
    return weight


@pytest.mark.parametrize("kind", ["normal", "outliers", "zeros", "settled", "bf16"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 128), (8, 32), (8, 256)])
def test_integers_and_scales_are_torchaos(
    kind: str, bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the weights, in one part and in many."""
    weight = _weights(kind, (48, 256))
    integers, scales = _of_torchao(weight, bits, group_size)
    for at_once in (1000, hqq.AT_ONCE):
        monkeypatch.setattr(hqq, "AT_ONCE", at_once)
        fast_integers, fast_scales = hqq_scale_only(weight, bits=bits, group_size=group_size)
        assert torch.equal(fast_integers, integers)
        assert torch.equal(fast_scales, scales)


@pytest.mark.parametrize("settled", [1e-1, 3e-2, 1e-2, 1e-3])
def test_parts_end_at_the_same_step(settled: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search ends before every group has settled, each has the scale of that step."""
    weight = torch.cat([_weights("settled", (8, 64)), _weights("normal", (8, 64)), _weights("outliers", (8, 64))])
    torchaos = resolve_name("torchao.quantization.quant_primitives:_choose_qparams_and_quantize_scale_only_hqq")
    integers, scales = torchaos(weight, [1, 32], -8, 7, early_stop_tol=settled)
    monkeypatch.setattr(hqq, "AT_ONCE", 64)
    monkeypatch.setattr(hqq, "SETTLED", settled)
    fast_integers, fast_scales = hqq_scale_only(weight, bits=4, group_size=32)
    assert torch.equal(fast_integers, integers) and torch.equal(fast_scales, scales)


def test_a_wide_matrix_and_an_embedding_are_torchaos() -> None:
    """Sizes at which torch adds in another order, and a table of 8-bit rows."""
    weight = _weights("normal", (300, 1408))
    assert all(map(torch.equal, hqq_scale_only(weight, bits=4, group_size=128), _of_torchao(weight, 4, 128)))
    integers, scales = quantize_rows(weight, scheme=Scheme(32, "hqq", 8))
    assert all(map(torch.equal, hqq_scale_only(weight, bits=8, group_size=32), (integers, scales)))


def test_what_is_not_finite_stays_visible() -> None:
    """A NaN weight gives a NaN scale, as torchao does."""
    weight = _weights("normal", (4, 64))
    weight[1, 5] = torch.nan
    _, scales = hqq_scale_only(weight, bits=4, group_size=32)
    assert scales.isnan().sum() == 1


@pytest.mark.parametrize("kind", ["normal", "outliers", "settled", "bf16"])
def test_the_exporter_writes_torchaos_bytes(kind: str) -> None:
    """In the lean exporter the fast search stands in for torchao's, in the weight's own dtype; what it does not know stays torchao's."""
    torchaos = resolve_name("torchao.quantization.quant_primitives:_choose_qparams_and_quantize_scale_only_hqq")
    asked: list[str] = []

    def compute(*given: Any, **options: Any) -> Any:
        asked.append("torchao")
        return torchaos(*given, **options)

    fast, weight = hqq_in_parts(compute), _weights(kind, (48, 256))
    for low, high in ((-8, 7), (-128, 127)):
        for made, wanted in zip(fast(weight, [1, 64], low, high), torchaos(weight, [1, 64], low, high), strict=True):
            assert torch.equal(made.to(wanted.dtype), wanted)
    assert fast(weight, [1, 64], -8, 7)[1].dtype == weight.dtype
    assert asked == []
    fast(weight, [1, 64], -7, 7)
    fast(weight, [1, 64], -8, 7, iters=3)
    assert asked == ["torchao"] * 2


def test_the_lean_exporter_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the block, and no longer."""
    calls: list[int] = []
    monkeypatch.setattr(lean, "hqq_scale_only", lambda weight, **how: calls.append(1) or hqq_scale_only(weight, **how))
    weight = _weights("normal", (48, 256))
    expected = _of_torchao(weight, 4, 64)
    assert calls == []
    with lean.lean_lowering():
        made = _of_torchao(weight, 4, 64)
    assert calls == [1]
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))
