"""One constant against what the recipe makes of its parameter: exactly equal, or said where and how not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.nibbles import unpack_nibbles
from verifier.artifact.plan import TensorValue
from verifier.artifact.storage import Storage
from verifier.audit.expected import Expected, Source, expected_contents
from verifier.audit.inventory import Constant
from verifier.audit.records import Audited
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerGroup, PerTensor
from verifier.backends.xnnpack.context import channel_scales, constant_weights
from verifier.core.compare import decibels
from verifier.core.limits import limit
from verifier.families.family import Parameter
from verifier.interpret.machine import constant_tensor

FACTOR, SCALE = limit("weights.derived.factor"), limit("weights.tensors.scale")
BIAS = limit("weights.tensors.bias")
FIDELITY_ELEMENTS = 1 << 18
"""Elements that are compared with the checkpoint at a time."""


def compare_constant(
    constant: Constant, parameter: Parameter | None, source: Source, storage: Storage, *, weight_scale: float | None
) -> Audited:
    """Hold one constant against the recipe. `weight_scale` is that of the weight that a bias belongs to.

    Raises `UnknownOperationError` for a dtype that has no semantics.
    """
    record = Audited(
        name=parameter.name if parameter else f"{constant.method}.{constant.role.replace(' ', '_')}_{constant.order}",
        key=parameter.key if parameter else None,
        method=constant.method,
        instruction=constant.instruction,
        role=constant.role,
        elements=int(np.prod(constant.shape)),
    )
    expected = expected_contents(constant, parameter, source)
    if expected is None:
        return replace(record, explained=False, reason=_unexplained(constant, parameter, source))
    stored = _stored(constant, storage, source)
    values = expected.values
    if parameter is not None and constant.role == "bias":
        values = _or_rounded(constant, stored, values, source.tensor(parameter.key))
    record = _same(record, stored, values, expected.what)
    record = _check_scales(record, constant, expected, storage, weight_scale, source)
    if parameter is None:
        return _check_factor(record, constant, stored, expected.number)
    return _fidelity(record, constant, stored, source.tensor(parameter.key), storage)


def _unexplained(constant: Constant, parameter: Parameter | None, source: Source) -> str:
    if parameter is None:
        what = f"{constant.role}, {list(constant.shape)}"
        return f"it matches no tensor of the checkpoint, and the recipe does not define it ({what})"
    value = constant.value
    quantization = value.quantization if isinstance(value, GraphValue) else None
    if isinstance(quantization, PerGroup):
        found = f"4-bit groups of {quantization.group_size} along axis {quantization.axis}"
    else:
        found = f"{value.dtype} ({type(quantization).__name__})"
    return f"it is stored as {found}, which the recipe {source.recipe.name} never gives"


def _stored(constant: Constant, storage: Storage, source: Source) -> Tensor:
    if not isinstance(constant.value, TensorValue):
        return constant_weights(constant.value, storage)
    stored = constant_tensor(constant.value, storage)
    if constant.role == "embedding" and source.recipe.embedding_bits == 4:
        return torch.from_numpy(unpack_nibbles(stored.numpy(), low_first=False))
    return stored


def _or_rounded(constant: Constant, stored: Tensor, expected: Tensor, bias: Tensor) -> Tensor:
    """The recipe's integers of a bias [N], or the stored one where the rounding of its scale explains that it is the neighbour."""
    quantization = constant.value.quantization if isinstance(constant.value, GraphValue) else None
    if not isinstance(quantization, PerTensor) or stored.shape != expected.shape or stored.is_floating_point():
        return expected
    values = expected.clone()
    for place in (stored != expected).nonzero().flatten().tolist():
        exact = float(bias[place]) / quantization.scale
        beyond = abs(int(stored[place]) - exact) - 0.5
        if BIAS.admits(max(beyond, 0.0) / max(abs(exact), 1.0)):
            values[place] = stored[place]
    return values


def _wrong(record: Audited, reason: str) -> Audited:
    return replace(record, reason=record.reason or reason)


def _same(record: Audited, actual: Tensor, expected: Tensor, what: str) -> Audited:
    """Elements must be equal; the record says how many are not, and which is the worst."""
    if actual.shape != expected.shape:
        return _wrong(record, f"its shape is {list(actual.shape)}, expected {list(expected.shape)} as {what}")
    off = actual != expected
    if not bool(off.any()):
        return record
    distance = torch.where(off, (actual.double() - expected.double()).abs(), 0.0)
    distance = torch.where(distance.isnan(), torch.inf, distance)
    place = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), expected.shape)) if expected.dim() else ()
    reason = (
        f"{int(off.sum()):,} of {expected.numel():,} elements differ from {what}, most at {list(place)}: "
        f"stored {actual[place].item():.6g}, expected {expected[place].item():.6g}"
    )
    return replace(_wrong(record, reason), wrong=record.wrong + int(off.sum()), index=place)


def _check_scales(  # noqa: PLR0917
    record: Audited,
    constant: Constant,
    expected: Expected,
    storage: Storage,
    weight_scale: float | None,
    source: Source,
) -> Audited:
    value = constant.value
    if constant.epsilon is not None and constant.epsilon != source.family.checkpoint.geometry.vision.norm_eps:
        wanted = source.family.checkpoint.geometry.vision.norm_eps
        return _wrong(record, f"its layer norm has epsilon {constant.epsilon:g}, the checkpoint {wanted:g}")
    if not isinstance(value, GraphValue):
        return record
    if isinstance(value.quantization, PerGroup) and expected.scales is not None:
        return _same(record, channel_scales(value, storage), expected.scales, "the recipe's group scales")
    if not isinstance(value.quantization, PerTensor):
        return record
    scale, zero_point = value.quantization.scale, value.quantization.zero_point
    if constant.role == "bias":
        wanted = (constant.input_scale or 0.0) * (weight_scale or 0.0)
    else:
        wanted = float(expected.scales) if expected.scales is not None else scale
    if zero_point or wanted == 0.0 or not SCALE.admits(abs(scale / wanted - 1)):
        return _wrong(record, f"scale {scale:.8g} and zero point {zero_point}, the recipe gives {wanted:.8g} and 0")
    return record


def _check_factor(record: Audited, constant: Constant, stored: Tensor, number: float | None) -> Audited:
    """QuickGELU's factor has an int8 range of its own, and so is exact but for the rounding of its scale."""
    given = constant.quantization
    if number is None or not isinstance(given, PerTensor):
        return record
    real = (float(stored) - given.zero_point) * given.scale
    off = not FACTOR.admits(abs(real / number - 1))
    return _wrong(record, f"QuickGELU's factor is {real:.7g}, expected {number:.7g}") if off else record


def _fidelity(record: Audited, constant: Constant, stored: Tensor, weight: Tensor, storage: Storage) -> Audited:
    """How far the stored weights are from the checkpoint: SQNR, worst error in steps, worst group. Some rows at a time: a table of
    131 million elements has 1 GB in fp64."""
    value = constant.value
    given = value.quantization if isinstance(value, GraphValue) else constant.quantization
    group = given.group_size if isinstance(given, PerGroup) else None
    if group is not None and isinstance(value, GraphValue):
        scales = channel_scales(value, storage)
    elif isinstance(given, PerTensor):
        scales = torch.full((1,), given.scale, dtype=torch.float64)
    else:
        return record
    zero_point = given.zero_point if isinstance(given, PerTensor) else 0
    target = weight.permute(0, 2, 3, 1) if constant.role == "convolution" else weight
    rows = stored.shape[0] if stored.dim() else 1
    matrix, wanted = stored.reshape(rows, -1), target.reshape(rows, -1)
    width = matrix.shape[1]
    at_once = max(1, FIDELITY_ELEMENTS // width)
    signal = noise = 0.0
    worst = []
    for first in range(0, rows, at_once):
        chosen = slice(first, first + at_once)
        steps = scales[chosen].double().repeat_interleave(group, 1) if group else scales
        real = wanted[chosen].double()
        error = ((matrix[chosen].double() - zero_point) * steps).sub_(real).abs_()
        signal += float(real.square().sum())
        noise += float(error.square().sum())
        worst.append(error.div_(steps.clamp(min=1e-30)).flatten().max(0))
    block = int(torch.stack([most for most, _ in worst]).argmax())
    place = int(worst[block][1]) + block * at_once * width
    at = tuple(int(i) for i in np.unravel_index(place, stored.shape))
    return replace(
        record,
        sqnr_db=decibels(signal, noise),
        worst_steps=float(worst[block][0]),
        group=(at[0], at[1] // group) if group else None,
        index=record.index if record.index is not None else at,
    )
