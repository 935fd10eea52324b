"""What the recipe makes of a tensor: integers and scales by the very functions that the exporter calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verifier.backends.quantization import PerChannel, PerTensor
from verifier.core import upstream
from verifier.core.types import Scheme
from verifier.export.hqq import hqq_scale_only
from verifier.export.quantize import quantize_linear, quantize_rows

ROWS_AT_ONCE = 256
"""Rows of a linear that are quantized at a time: a few MB, so that 7B's output of 32064 rows takes no GB."""


@dataclass(frozen=True)
class Quantized:
    """Integers as stored before packing, and scales: [N, G] for groups, [1] for a whole tensor."""

    integers: Tensor
    scales: Tensor


def quantized_linear(weight: Tensor, scheme: Scheme) -> Quantized:
    """Integers of a decoder linear [N, K] as int8, and scales [N, G]: those of groups rounded to bf16, as XNNPACK holds them.

    All quantizers but HQQ look at one group at a time, so they are given some rows at a time; HQQ has a function of its own.
    """
    if scheme.quantizer == "hqq":
        return _by_hqq(weight, scheme)
    parts = [_quantized_rows(part, scheme) for part in torch.split(weight, ROWS_AT_ONCE)]
    return Quantized(torch.cat([part.integers for part in parts]), torch.cat([part.scales for part in parts]))


def _by_hqq(weight: Tensor, scheme: Scheme, *, rounded: bool = True) -> Quantized:
    integers, scales = hqq_scale_only(weight, bits=scheme.bits, group_size=scheme.group_size or weight.shape[1])
    return Quantized(integers, scales.to(torch.bfloat16).to(torch.float32) if scheme.group_size and rounded else scales)


def _quantized_rows(weight: Tensor, scheme: Scheme) -> Quantized:
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    quantize_linear(holder, "audited", scheme=scheme)
    made: Any = holder.weight  # torchao's tensor subclass
    scales = made.scale.to(torch.bfloat16) if scheme.group_size else made.scale
    return Quantized(made.qdata, scales.to(torch.float32).reshape(len(weight), -1))


def quantized_static_weight(weight: Tensor, *, per_channel: bool = False) -> Quantized:
    """int8 in [-127, 127] with one scale, [1], or with one for each output channel, [N], by the observers of XNNPACKQuantizer's symmetric
    configurations."""
    kind = upstream.CHANNEL_OBSERVER if per_channel else upstream.MIN_MAX_OBSERVER
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    observer = kind.resolve()(dtype=torch.int8, qscheme=scheme, quant_min=-127, quant_max=127, eps=2**-12)
    weight = weight.to(torch.float32)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    if not per_channel:
        integers = _static(weight, float(scale), int(zero_point), -127, 127, torch.int8)
        return Quantized(integers, scale.reshape(1).to(torch.float32))
    upstream.QUANTIZE_OPERATORS.resolve()
    quantize = torch.ops.quantized_decomposed.quantize_per_channel
    return Quantized(quantize(weight, scale, zero_point, 0, -127, 127, torch.int8), scale.to(torch.float32))


def quantized_static(x: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """int8 of a tensor that enters as an activation, such as a position table."""
    return _static(x.to(torch.float32), scale, zero_point, -128, 127, torch.int8)


def quantized_bias(bias: Tensor, given: PerTensor | PerChannel) -> Tensor:
    """int32 with the scale of the sums that it is added to: the activation's times the weight's."""
    if isinstance(given, PerTensor):
        return _static(bias.to(torch.float32), given.scale, 0, -(2**31) + 1, 2**31 - 1, torch.int32)
    upstream.QUANTIZE_OPERATORS.resolve()
    assert isinstance(given.scales, tuple), "scales inside the delegate"
    scales = torch.tensor(given.scales)
    zeros = torch.zeros(len(bias), dtype=torch.int64)
    quantize = torch.ops.quantized_decomposed.quantize_per_channel
    made: Tensor = quantize(bias.to(torch.float32), scales, zeros, 0, -(2**31) + 1, 2**31 - 1, torch.int32)
    return made


def _static(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:  # noqa: PLR0917
    upstream.QUANTIZE_OPERATORS.resolve()
    made: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, low, high, dtype)
    return made


def quantized_embedding(table: Tensor, scheme: Scheme) -> Quantized:
    """Integers [V, D] and scales [V, G] of the embedding; 4-bit ones not yet packed."""
    if scheme.quantizer == "hqq":
        return _by_hqq(table, scheme, rounded=False)
    integers, scales = quantize_rows(table.to(torch.float32), scheme=scheme)
    return Quantized(integers, scales)
