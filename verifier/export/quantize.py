"""The recipe's weight quantization: 4-bit groups for the decoder's linears, 8- or 4-bit groups for the embedding.

Arithmetic is torchao's; this module decides what it is applied to, and when. Sources: `8da4w` in
executorch/examples/models/llama/source_transformation/quantize.py; HQQ is Badri & Shaji 2023 (scale-only variant).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from verifier.core.errors import ExportError
from verifier.core.types import Quantizer, Recipe, Scheme
from verifier.families.geometry import TextGeometry

_UNQUANTIZED = "give --embedding-bits 32: the table stays fp32"


def _choice(quantizer: Quantizer, prefix: str = "") -> dict[str, Any]:
    """What torchao calls a choice of scales; its configurations name the same fields with a `prefix` or without."""
    from torchao.quantization import MappingType

    return {
        "affine": {"intx_choose_qparams_algorithm": "affine"},
        "hqq": {"intx_choose_qparams_algorithm": "hqq_scale_only"},
        "affine-no-clipping": {f"{prefix}mapping_type": MappingType.SYMMETRIC_NO_CLIPPING_ERR},
        "affine-bf16": {f"{prefix}scale_dtype": torch.bfloat16},
    }[quantizer]


def _granularity(scheme: Scheme) -> Any:
    from torchao.quantization import PerAxis, PerGroup

    return PerGroup(scheme.group_size) if scheme.group_size else PerAxis(0)


def default_group_size(width: int) -> int:
    """128 as upstream's recipe, or less for narrow decoders, so that a row keeps at least four groups."""
    return next((size for size in (128, 64) if width >= 4 * size), 32)


def require_whole_groups(text: TextGeometry, recipe: Recipe) -> None:
    """Raise `ExportError` for a recipe whose groups do not divide the channels of the decoder or of the embedding: before minutes of work."""
    projections = (("wq", text.width), ("wo", text.heads * text.head_dim), ("feed_forward.w2", text.hidden))
    for name, channels in projections:
        _require_groups(f"linear {name}", channels, recipe.linears)
    _require_groups("linear output", text.width, recipe.head)
    if recipe.embedding_bits < 32:
        _require_groups("the embedding", text.width, recipe.embedding, _UNQUANTIZED)


def _require_groups(what: str, channels: int, scheme: Scheme, fix: str = "give a smaller --group-size") -> None:
    if scheme.group_size and channels % scheme.group_size:
        raise ExportError(
            f"{what} cannot be quantized in whole groups",
            got=f"{channels} input channels",
            expected=f"a multiple of the group size {scheme.group_size}",
            fix=fix,
        )


def quantize_linear(linear: nn.Module, name: str, *, scheme: Scheme) -> None:
    """Replace an fp32 linear's weight, in place, by integers with per-row dynamic int8 activations (8da4w).

    Raises `ExportError` if the input channels do not divide into groups: the linear would stay fp32 in silence.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_

    if not isinstance(linear, nn.Linear):
        return
    _require_groups(f"linear {name}", linear.in_features, scheme)
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, f"int{scheme.bits}"),  # int4 is unknown to the type stubs
        weight_granularity=_granularity(scheme),
        **_choice(scheme.quantizer, "weight_"),
    )
    quantize_(linear, config, filter_fn=lambda module, _name: module is linear)


class QuantizedEmbedding(nn.Module):
    """Embedding table of int8 rows, or packed int4 (low nibble second), with one fp32 scale per group of 32 columns."""

    def __init__(self, weight: Tensor, scales: Tensor, *, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids int64 [1, S] -> [1, S, D] fp32."""
        ops = torch.ops.quantized_decomposed
        if self.bits == 8:
            out: Tensor = ops.embedding_byte.dtype(self.weight, self.scales, None, -128, 127, ids, dtype=torch.float32)
        else:
            out = ops.embedding_4bit.dtype(self.weight, self.scales, None, -8, 7, ids, dtype=torch.float32)
        return out


def quantize_rows(table: Tensor, *, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """An fp32 table [V, D] -> integers int8 [V, D] and scales fp32 [V, G], symmetric."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_

    holder = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{scheme.bits}"),
        granularity=_granularity(scheme),
        **_choice(scheme.quantizer),
    )
    with torch.no_grad():
        quantize_(holder, config, lambda module, _name: isinstance(module, nn.Embedding))
    made: Any = holder.weight
    return made.qdata, made.scale.reshape(len(table), -1).to(torch.float32)


def quantize_embedding(table: Tensor, *, recipe: Recipe) -> nn.Module:
    """The `token_embedding` method for a table [V, D]. Raises `ExportError` if D does not divide into groups."""
    if recipe.embedding_bits == 32:
        return nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    _require_groups("the embedding", table.shape[1], recipe.embedding, _UNQUANTIZED)
    integers, scales = quantize_rows(table, scheme=recipe.embedding)
    if recipe.embedding_bits == 4:
        nibbles = (integers + 8).to(torch.uint8)
        integers = nibbles[:, 0::2] * 16 + nibbles[:, 1::2]
    return QuantizedEmbedding(integers, scales, bits=recipe.embedding_bits)
