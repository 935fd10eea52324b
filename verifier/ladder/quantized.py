"""The `quantized` rung of the decoder: the eager definition with the recipe's 4-bit weights and per-row int8 activations.

Weights come from the checkpoint by the recipe, rounded to bf16 scales as XNNPACK holds them; nothing is read from the file
under test. What is left between this rung and the program is what lowering did: passes, partitions, packing, the graph.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifier.audit.recipe import quantized_linear
from verifier.checkpoint import Checkpoint
from verifier.interpret.arithmetic import dequantize_rows, quantize_rows
from verifier.model.definition import build_decoder
from verifier.model.streaming import is_large
from verifier.types import Recipe


def _emulated(linear: nn.Linear, x: Tensor) -> Tensor:
    """x [..., K] fp32 -> [..., N] fp32: int8 rows times 4-bit groups, summed in fp64."""
    scales: Any = linear.scales
    weights = linear.weight.double().view(*scales.shape, -1) * scales.double()[..., None]
    out: Tensor = (dequantize_rows(quantize_rows(x)) @ weights.view(linear.weight.shape).T).to(torch.float32)
    return out


def _quantize(module: nn.Module, _name: str, *, recipe: Recipe) -> None:
    if not isinstance(module, nn.Linear):
        return
    made = quantized_linear(module.weight, recipe)
    module.weight = nn.Parameter(made.integers, requires_grad=False)
    module.register_buffer("scales", made.scales.reshape(module.out_features, -1))
    module.forward = partial(_emulated, module)  # type: ignore[method-assign]


def build_quantized_decoder(checkpoint: Checkpoint, recipe: Recipe) -> Any:
    """ExecuTorch's eager transformer whose linears compute as the recipe's 8da4w does; weights stay int8."""
    return build_decoder(
        checkpoint,
        max_seq_len=recipe.max_seq_len,
        max_context_len=recipe.max_context_len,
        on_module=partial(_quantize, recipe=recipe),
        streamed=is_large(checkpoint),
    )
