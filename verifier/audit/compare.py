"""One constant against what the recipe makes of its parameter: exactly equal, or said where and how not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.plan import TensorValue
from verifier.artifact.storage import Storage
from verifier.artifact.xnnpack import GraphValue, PerGroup, PerTensor
from verifier.audit.assign import Parameter
from verifier.audit.inventory import Constant
from verifier.audit.recipe import (
    quantized_bias,
    quantized_embedding,
    quantized_linear,
    quantized_static,
    quantized_static_weight,
)
from verifier.interpret.machine import constant_tensor
from verifier.interpret.nodes import channel_scales, constant_weights
from verifier.metrics import sqnr_db
from verifier.model.geometry import Geometry
from verifier.model.text import rope_tables
from verifier.model.vision import CLIP_MEAN, CLIP_STD, RESCALE
from verifier.types import Recipe

SCALE_TOLERANCE = 1e-6
"""Relative. Scales of static int8 are computed in fp32 by the exporter and stored as fp32: a few ulps of 6e-8 at most."""
QUICK_GELU = 1.702


@dataclass(frozen=True)
class Audited:
    """The result for one constant. `wrong` counts elements that differ from the recipe's, `index` is the worst of them.

    `sqnr_db` and `worst_steps` compare the stored weights, dequantized, with the checkpoint (steps are of the element's
    own scale). `group` is the group with the largest error. `reason` is empty if all is as the recipe gives it.
    """

    name: str
    key: str | None
    method: str
    instruction: int
    role: str
    elements: int
    wrong: int = 0
    index: tuple[int, ...] | None = None
    sqnr_db: float | None = None
    worst_steps: float | None = None
    group: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Source:
    """Where a comparison reads from."""

    storage: Storage
    geometry: Geometry
    recipe: Recipe
    tensor: Callable[[str], Tensor]
    weight_scale: Callable[[int], float | None]


def compare_constant(constant: Constant, parameter: Parameter | None, source: Source) -> Audited:
    """Hold one constant against the recipe. Raises `UnknownOperationError` for a dtype that has no semantics."""
    record = Audited(
        name=parameter.name if parameter else f"{constant.method}.{constant.role.replace(' ', '_')}",
        key=parameter.key if parameter else None,
        method=constant.method,
        instruction=constant.instruction,
        role=constant.role,
        elements=int(np.prod(constant.shape)),
    )
    if parameter is None:
        return _derived(record, constant, source)
    weight = source.tensor(parameter.key)
    if constant.role == "linear":
        return _linear(record, constant, weight, source)
    if constant.role == "convolution":
        return _static_weight(record, constant, weight.permute(0, 2, 3, 1), source)
    if constant.role == "bias":
        return _bias(record, constant, weight, source)
    if constant.role == "addend":
        return _addend(record, constant, weight, source)
    if constant.role == "embedding":
        return _embedding(record, constant, weight, source)
    record = _same(record, _stored(constant, source), weight.to(torch.float32), "the checkpoint's value")
    expected = source.geometry.vision.norm_eps
    if constant.epsilon is not None and constant.epsilon != expected:
        return _wrong(record, f"its layer norm has epsilon {constant.epsilon:g}, the checkpoint {expected:g}")
    return record


def _stored(constant: Constant, source: Source) -> Tensor:
    if isinstance(constant.value, TensorValue):
        return constant_tensor(constant.value, source.storage)
    return constant_weights(constant.value, source.storage)


def _wrong(record: Audited, reason: str) -> Audited:
    return replace(record, reason=record.reason or reason)


def _same(record: Audited, actual: Tensor, expected: Tensor, what: str) -> Audited:
    """Elements must be equal; the record says how many are not, and which is the worst."""
    if actual.numel() != expected.numel():
        return _wrong(record, f"it has {actual.numel():,} elements, {what} has {expected.numel():,}")
    a, e = actual.reshape(expected.shape), expected
    off = a != e
    if not bool(off.any()):
        return record
    distance = torch.where(off, (a.double() - e.double()).abs(), torch.zeros(()).double()).nan_to_num(nan=torch.inf)
    at = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), e.shape or (1,)))
    place = at if e.dim() else ()
    return replace(
        _wrong(
            record,
            f"{int(off.sum()):,} of {e.numel():,} elements differ from {what}, most at {list(place)}: "
            f"stored {a[place].item():.6g}, expected {e[place].item():.6g}",
        ),
        wrong=record.wrong + int(off.sum()),
        index=place,
    )


def _fidelity(record: Audited, dequantized: Tensor, weight: Tensor, steps: Tensor, group: int | None) -> Audited:
    """How far the stored weights are from the checkpoint: SQNR, worst error in steps, worst group."""
    real = weight.double()
    error = (dequantized - real).abs()
    in_steps = error / steps.clamp(min=1e-30)
    at = tuple(int(i) for i in np.unravel_index(int(in_steps.argmax()), real.shape))
    return replace(
        record,
        sqnr_db=sqnr_db(actual=dequantized.numpy(), expected=real.numpy()),
        worst_steps=float(in_steps.max()),
        group=(at[0], at[1] // group) if group else None,
        index=record.index if record.index is not None else at,
    )


def _linear(record: Audited, constant: Constant, weight: Tensor, source: Source) -> Audited:
    value = constant.value
    assert isinstance(value, GraphValue)
    if value.dtype == "qint8":
        return _static_weight(record, constant, weight, source)
    if not isinstance(value.quantization, PerGroup):
        return _wrong(record, f"it is stored as {value.dtype}, the recipe {source.recipe.name} gives 4-bit groups")
    group, axis = value.quantization.group_size, value.quantization.axis
    if group != source.recipe.group_size or axis != 0:
        return _wrong(record, f"groups of {group} along axis {axis}, the recipe has {source.recipe.group_size} along 0")
    expected = quantized_linear(weight, source.recipe)
    integers, scales = constant_weights(value, source.storage), channel_scales(value, source.storage)
    record = _same(record, integers, expected.integers, "the recipe's 4-bit integers")
    record = _same(record, scales, expected.scales.reshape(scales.shape), "the recipe's group scales")
    wide = scales.double().repeat_interleave(group, 1)
    return _fidelity(record, integers.double() * wide, weight, wide, group)


def _static_weight(record: Audited, constant: Constant, weight: Tensor, source: Source) -> Audited:
    value = constant.value
    assert isinstance(value, GraphValue)
    if not isinstance(value.quantization, PerTensor):
        return _wrong(
            record, f"it is stored as {value.dtype} with {value.quantization}, the recipe gives int8 per tensor"
        )
    expected = quantized_static_weight(weight)
    scale, zero_point = value.quantization.scale, value.quantization.zero_point
    if zero_point or abs(scale / float(expected.scales) - 1) > SCALE_TOLERANCE:
        record = _wrong(
            record,
            f"scale {scale:.8g} and zero point {zero_point}, the recipe gives {float(expected.scales):.8g} and 0",
        )
    integers = constant_weights(value, source.storage)
    record = _same(record, integers, expected.integers, "the recipe's int8 integers")
    step = torch.full((1,), scale, dtype=torch.float64)
    return _fidelity(record, (integers.double() - zero_point) * scale, weight, step, None)


def _bias(record: Audited, constant: Constant, bias: Tensor, source: Source) -> Audited:
    value = constant.value
    weight_scale = source.weight_scale(constant.partner if constant.partner is not None else -1)
    if not isinstance(value, GraphValue) or not isinstance(value.quantization, PerTensor):
        return _same(record, _stored(constant, source), bias.to(torch.float32), "the checkpoint's value")
    if weight_scale is None or constant.input_scale is None:
        return _wrong(record, "it is quantized, but the weight or the activation it belongs to is not")
    scale = value.quantization.scale
    product = constant.input_scale * weight_scale
    if value.quantization.zero_point or abs(scale / product - 1) > SCALE_TOLERANCE:
        record = _wrong(record, f"scale {scale:.8g}, activation times weight gives {product:.8g}")
    integers = constant_weights(value, source.storage)
    record = _same(record, integers, quantized_bias(bias, scale=scale), "the recipe's int32 integers")
    return _fidelity(record, integers.double() * scale, bias, torch.full((1,), scale, dtype=torch.float64), None)


def _addend(record: Audited, constant: Constant, table: Tensor, source: Source) -> Audited:
    quantization = constant.quantization
    stored = _stored(constant, source)
    if not isinstance(quantization, PerTensor):
        return _same(record, stored, table.to(torch.float32), "the checkpoint's value")
    scale, zero_point = quantization.scale, quantization.zero_point
    record = _same(
        record, stored, quantized_static(table, scale=scale, zero_point=zero_point), "the recipe's int8 integers"
    )
    real = ((stored.double() - zero_point) * scale).reshape(table.shape)
    return _fidelity(record, real, table, torch.full((1,), scale, dtype=torch.float64), None)


def _embedding(record: Audited, constant: Constant, table: Tensor, source: Source) -> Audited:
    stored = _stored(constant, source)
    if source.recipe.embedding_bits == 32:
        return _same(record, stored, table.to(torch.float32), "the checkpoint's table")
    expected = quantized_embedding(table, source.recipe).integers
    if source.recipe.embedding_bits == 4:
        stored = torch.stack([stored >> 4, stored & 15], -1).reshape(expected.shape).to(torch.int8) - 8
    return _same(record, stored, expected, "the recipe's integers")


def _derived(record: Audited, constant: Constant, source: Source) -> Audited:
    """Constants that no tensor of the checkpoint holds: they follow from its configuration, or from the recipe."""
    stored = _stored(constant, source)
    role = constant.role
    if role == "epsilon":
        return _same(record, stored, torch.tensor(source.geometry.text.norm_eps), "rms_norm_eps of config.json")
    if role in ("mean", "std"):
        values = torch.tensor(CLIP_MEAN if role == "mean" else CLIP_STD).view(3, 1, 1)
        return _same(record, stored, values, f"CLIP's image {role}")
    if role == "rope":
        tables = rope_tables(source.geometry.text, max_context_len=source.recipe.max_context_len)
        nearest = min(
            tables, key=lambda table: float((stored - table).abs().mean()) if stored.shape == table.shape else np.inf
        )
        return _same(record, stored, nearest, "the RoPE table of rope_theta and head_dim")
    if role == "mask":
        return _same(record, stored, torch.ones(stored.shape[-2:], dtype=torch.bool).tril(), "a causal mask")
    if role == "factor" and constant.method == "vision_encoder" and stored.numel() == 1:
        if isinstance(constant.quantization, PerTensor):
            given = constant.quantization
            wanted = quantized_static(torch.tensor(QUICK_GELU), scale=given.scale, zero_point=given.zero_point)
            record = _same(record, stored, wanted, f"QuickGELU's {QUICK_GELU}")
            real = (float(stored) - given.zero_point) * given.scale
            off = abs(real - QUICK_GELU) > 0.5 * given.scale
            return _wrong(record, f"QuickGELU's factor is {real:.5g}, not {QUICK_GELU}") if off else record
        return _same(record, stored, torch.tensor(RESCALE), "1 / 255")
    if role == "embedding scales":
        return record
    return _wrong(
        record,
        f"no checkpoint tensor is like it, and nothing in the recipe explains it ({role}, {list(constant.shape)})",
    )
