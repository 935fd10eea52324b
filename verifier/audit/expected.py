"""What the recipe stores in the place of a constant, from the checkpoint and its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.artifact.nibbles import pack_nibbles
from verifier.artifact.storage import Bytes, Span
from verifier.audit.assign import Parameter
from verifier.audit.inventory import Constant
from verifier.audit.recipe import (
    quantized_bias,
    quantized_embedding,
    quantized_linear,
    quantized_static,
    quantized_static_weight,
)
from verifier.backends.backend import GraphValue, PerGroup, PerTensor
from verifier.model.geometry import Geometry
from verifier.model.text import rope_tables
from verifier.model.vision import CLIP_MEAN, CLIP_STD, QUICK_GELU, RESCALE
from verifier.types import Recipe


@dataclass(frozen=True)
class Source:
    """What an expectation is made from. `tensor` reads one tensor of the checkpoint by key; `embedding` is the table's."""

    geometry: Geometry
    recipe: Recipe
    tensor: Callable[[str], Tensor]
    embedding: str


@dataclass(frozen=True)
class Expected:
    """Contents in the shape and dtype of the store, 4-bit integers unpacked to int8; `scales` of a weight; `what` they are."""

    values: Tensor
    what: str
    scales: Tensor | None = None


def expected_contents(constant: Constant, parameter: Parameter | None, source: Source) -> Expected | None:
    """What belongs into a constant; None if nothing explains it, or if it is stored in a form that the recipe never gives."""
    if parameter is None:
        return _derived(constant, source)
    weight = source.tensor(parameter.key)
    value, quantization = constant.value, _quantization(constant)
    if constant.role == "linear" and isinstance(quantization, PerGroup):
        if quantization.group_size != source.recipe.group_size or quantization.axis != 0:
            return None
        made = quantized_linear(weight, source.recipe)
        return Expected(made.integers, "the recipe's 4-bit integers", made.scales.reshape(weight.shape[0], -1))
    if constant.role in ("linear", "convolution"):
        if not isinstance(value, GraphValue) or value.dtype != "qint8" or not isinstance(quantization, PerTensor):
            return None
        made = quantized_static_weight(weight)
        stored = made.integers.permute(0, 2, 3, 1) if constant.role == "convolution" else made.integers
        return Expected(stored.contiguous(), "the recipe's int8 integers", made.scales)
    if constant.role == "embedding":
        if source.recipe.embedding_bits == 32:
            return Expected(weight.to(torch.float32), "the checkpoint's table")
        return Expected(quantized_embedding(weight, source.recipe).integers, "the recipe's integers")
    if isinstance(quantization, PerTensor):
        scale, zero_point = quantization.scale, quantization.zero_point
        if constant.role == "bias":
            return Expected(quantized_bias(weight, scale=scale), "the recipe's int32 integers")
        static = quantized_static(weight, scale=scale, zero_point=zero_point).reshape(constant.shape)
        return Expected(static, "the recipe's int8 integers")
    return Expected(weight.to(torch.float32).reshape(constant.shape), "the checkpoint's value")


def _quantization(constant: Constant) -> object:
    return constant.value.quantization if isinstance(constant.value, GraphValue) else constant.quantization


def _derived(constant: Constant, source: Source) -> Expected | None:
    """Constants that no tensor of the checkpoint holds: they follow from its configuration, or from the recipe."""
    role, shape = constant.role, constant.shape
    if role == "epsilon":
        return Expected(torch.full(shape, source.geometry.text.norm_eps), "rms_norm_eps of config.json")
    if role in ("mean", "std"):
        values = torch.tensor(CLIP_MEAN if role == "mean" else CLIP_STD).view(3, 1, 1)
        return Expected(values, f"CLIP's image {role}")
    if role == "rope":
        tables = rope_tables(source.geometry.text, max_context_len=source.recipe.max_context_len)
        table = tables[constant.order % 2]
        return Expected(table, "the RoPE table of rope_theta and head_dim") if table.shape == shape else None
    if role == "mask":
        return Expected(torch.ones(shape, dtype=torch.bool).tril(), "a causal mask")
    if role == "factor" and constant.method == "vision_encoder" and shape == ():
        if isinstance(constant.quantization, PerTensor):
            given = constant.quantization
            stored = quantized_static(torch.tensor(QUICK_GELU), scale=given.scale, zero_point=given.zero_point)
            return Expected(stored, f"QuickGELU's {QUICK_GELU}")
        return Expected(torch.tensor(RESCALE), "1 / 255")
    if role == "embedding scales":
        scales = quantized_embedding(source.tensor(source.embedding), source.recipe).scales
        return Expected(scales.reshape(shape), "the recipe's scales")
    return None


def stored_bytes(constant: Constant, expected: Expected, recipe: Recipe) -> dict[Span, Bytes]:
    """An expectation packed as the file packs it, by the span that it belongs to."""
    value, values = constant.value, expected.values
    assert value.constant is not None
    delegated = isinstance(value, GraphValue) and value.dtype == "qbint4"
    if delegated or (constant.role == "embedding" and recipe.embedding_bits == 4):
        made = {value.constant: pack_nibbles(values.to(torch.int8).numpy(), low_first=delegated).reshape(-1)}
    else:
        made = {value.constant: _raw(values)}
    quantization = value.quantization if isinstance(value, GraphValue) else None
    if isinstance(quantization, PerGroup) and expected.scales is not None:
        made[quantization.scales] = _raw(expected.scales.to(torch.bfloat16))
    return made


def _raw(tensor: Tensor) -> Bytes:
    raw: Bytes = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return raw
