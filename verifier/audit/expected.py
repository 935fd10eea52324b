"""What the recipe stores in the place of a constant, from the checkpoint and its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.artifact.nibbles import pack_nibbles
from verifier.artifact.storage import Bytes, Span
from verifier.audit.inventory import Constant
from verifier.audit.recipe import (
    quantized_bias,
    quantized_embedding,
    quantized_linear,
    quantized_static,
    quantized_static_weight,
)
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerGroup, PerTensor
from verifier.core.types import Recipe
from verifier.families.family import Family, Parameter


@dataclass(frozen=True)
class Source:
    """What an expectation is made from."""

    family: Family
    recipe: Recipe

    def tensor(self, key: str) -> Tensor:
        """One tensor of the checkpoint."""
        return self.family.checkpoint.tensor(key)


@dataclass(frozen=True)
class Expected:
    """Contents in the shape and dtype of the store, 4-bit integers unpacked to int8; `scales` of a weight; `what` they are; the `number` that a quantized factor
    stands for."""

    values: Tensor
    what: str
    scales: Tensor | None = None
    number: float | None = None


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
    if constant.role == "embedding scales":
        scales = quantized_embedding(source.family.embedding_table(), source.recipe).scales
        return Expected(scales.reshape(constant.shape), "the recipe's scales")
    given = constant.quantization if isinstance(constant.quantization, PerTensor) else None
    found = source.family.derived(
        constant.role,
        constant.method,
        constant.shape,
        order=constant.order,
        max_context_len=source.recipe.max_context_len,
        stored=given is not None,
    )
    if found is None:
        return None
    value, what = found
    if given is None or constant.role != "factor":
        return Expected(value, what)
    return Expected(quantized_static(value, scale=given.scale, zero_point=given.zero_point), what, number=float(value))


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
