"""Each method as a `torch.export` program. The decoder is traced once, with its quantized weights in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from verifier.core import upstream
from verifier.core.types import Recipe
from verifier.export.quantize import quantize_embedding, quantize_linear
from verifier.families.checkpoint import Checkpoint
from verifier.families.llava.definition import build_decoder, build_vision_encoder, embedding_table


class _TextDecoder(nn.Module):
    """The method's calling convention: embeddings first, then the position, as ExecuTorch's LLaVA runner calls it."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.text_model = decoder

    def forward(self, embeddings: Tensor, input_pos: Tensor) -> Tensor:
        out: Tensor = self.text_model(None, {"input_pos": input_pos}, embeddings)
        return out


def trace_vision_encoder(checkpoint: Checkpoint, recipe: Recipe, calibration: Sequence[Tensor]) -> ExportedProgram:
    """`vision_encoder` in fp32, or in static int8 with ranges taken over all `calibration` images (uint8 [3, h, w])."""
    encoder = build_vision_encoder(checkpoint)
    side_px = checkpoint.geometry.vision.image_px
    example = torch.zeros(3, side_px, side_px - (0 if recipe.static_image_shape else 2), dtype=torch.uint8)
    shapes = None if recipe.static_image_shape else _image_shapes(side_px)
    with torch.no_grad():
        exported = torch.export.export(encoder, (example,), dynamic_shapes=shapes, strict=False)
        if recipe.vision == "fp32":
            return exported
        traced = exported.module()
        quantizer = upstream.XNNPACK_QUANTIZER.resolve()().set_global(upstream.XNNPACK_SYMMETRIC.resolve()())
        prepared = upstream.PREPARE_PT2E.resolve()(traced, quantizer)
        for image in calibration:
            prepared(image)
        quantized = upstream.CONVERT_PT2E.resolve()(prepared)
        return torch.export.export(quantized, (example,), dynamic_shapes=shapes, strict=False)


def _image_shapes(side_px: int) -> tuple[dict[int, object]]:
    """Even heights and widths up to the frame: torch.export cannot show that the margins of others fill it (docs/app-pixels.md)."""
    height, width = Dim("_height", min=1, max=side_px // 2), Dim("_width", min=1, max=side_px // 2)
    return ({1: 2 * height, 2: 2 * width},)


def trace_text_decoder(checkpoint: Checkpoint, recipe: Recipe) -> ExportedProgram:
    """`text_decoder`: embeddings [1, S, D] and position [1] -> logits of the last token [1, V]."""
    decoder = build_decoder(
        checkpoint,
        max_seq_len=recipe.max_seq_len,
        max_context_len=recipe.max_context_len,
        custom_sdpa=recipe.use_sdpa_with_kv_cache,
        on_module=partial(_quantize, recipe=recipe),
    )
    width = checkpoint.geometry.text.width
    example = (torch.zeros(1, 3, width), torch.tensor([0]))
    shapes = ({1: Dim("token_dim", min=1, max=recipe.max_seq_len)}, {0: 1})
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]), torch.no_grad():
        return torch.export.export(_TextDecoder(decoder), example, dynamic_shapes=shapes, strict=False)


def _quantize(module: nn.Module, name: str, *, recipe: Recipe) -> None:
    quantize_linear(module, name, scheme=recipe.head if name == "output" else recipe.linears)


def trace_token_embedding(checkpoint: Checkpoint, recipe: Recipe) -> ExportedProgram:
    """`token_embedding`: ids int64 [1, S] -> [1, S, D] fp32."""
    table = embedding_table(checkpoint)
    shapes = ({1: Dim("token_dim_1", min=1, max=recipe.max_seq_len)},)
    with torch.no_grad():
        return torch.export.export(
            quantize_embedding(table, recipe=recipe),
            (torch.zeros(1, 3, dtype=torch.int64),),
            dynamic_shapes=shapes,
            strict=False,
        )
