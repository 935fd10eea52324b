"""What the recipe makes of a tensor: integers and scales by the very functions that the exporter calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verifier.core import upstream
from verifier.core.types import Recipe
from verifier.export.quantize import quantize_linear, quantize_rows

ROWS_AT_ONCE = 256
"""Rows of a linear that are quantized at a time: a few MB, so that 7B's output of 32064 rows takes no GB."""


@dataclass(frozen=True)
class Quantized:
    """Integers as stored before packing, and scales: [N, G] for groups, [1] for a whole tensor."""

    integers: Tensor
    scales: Tensor


def quantized_linear(weight: Tensor, recipe: Recipe) -> Quantized:
    """4-bit groups of a decoder linear [N, K]: int8 in [-8, 7], scales [N, K / group] rounded to bf16, as XNNPACK holds them.

    The affine quantizer looks at one group at a time, so it is given some rows at a time; HQQ stops when no scale of all rows changes any more.
    """
    rows = ROWS_AT_ONCE if recipe.quantizer == "affine" else len(weight)
    parts = [_quantized_rows(part, recipe) for part in torch.split(weight, rows)]
    return Quantized(torch.cat([part.integers for part in parts]), torch.cat([part.scales for part in parts]))


def _quantized_rows(weight: Tensor, recipe: Recipe) -> Quantized:
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    quantize_linear(holder, "audited", recipe=recipe)
    made: object = holder.weight
    return Quantized(
        getattr(made, "qdata"),  # noqa: B009  torchao's tensor subclass
        getattr(made, "scale").to(torch.bfloat16).to(torch.float32),  # noqa: B009
    )


def quantized_static_weight(weight: Tensor) -> Quantized:
    """int8 in [-127, 127] with one scale, by the observer of XNNPACKQuantizer's symmetric configuration."""
    observer = upstream.MIN_MAX_OBSERVER.resolve()(
        dtype=torch.int8, qscheme=torch.per_tensor_symmetric, quant_min=-127, quant_max=127, eps=2**-12
    )
    weight = weight.to(torch.float32)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    return Quantized(
        _static(weight, float(scale), int(zero_point), -127, 127, torch.int8), scale.reshape(1).to(torch.float32)
    )


def quantized_static(x: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """int8 of a tensor that enters as an activation, such as a position table."""
    return _static(x.to(torch.float32), scale, zero_point, -128, 127, torch.int8)


def quantized_bias(bias: Tensor, *, scale: float) -> Tensor:
    """int32 with the scale of the sums it is added to: the activation's times the weight's."""
    return _static(bias.to(torch.float32), scale, 0, -(2**31) + 1, 2**31 - 1, torch.int32)


def _static(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:  # noqa: PLR0917
    upstream.QUANTIZE_OPERATORS.resolve()
    made: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, low, high, dtype)
    return made


def quantized_embedding(table: Tensor, recipe: Recipe) -> Quantized:
    """Integers [V, D] and scales [V, D / 32] of the embedding; 4-bit ones not yet packed."""
    integers, scales = quantize_rows(table.to(torch.float32), bits=recipe.embedding_bits, quantizer=recipe.quantizer)
    return Quantized(integers, scales)
