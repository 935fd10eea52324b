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
from verifier.audit.fidelity import measure, measure_fidelity
from verifier.audit.inventory import Constant
from verifier.audit.records import INTEGERS, Audited
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor
from verifier.backends.xnnpack.context import channel_scales, constant_weights
from verifier.core.limits import limit
from verifier.families.family import Parameter
from verifier.interpret.machine import constant_tensor

FACTOR, SCALE = limit("weights.derived.factor"), limit("weights.tensors.scale")
BIAS = limit("weights.tensors.bias")


def compare_constant(
    constant: Constant, parameter: Parameter | None, source: Source, storage: Storage, *, weight: Constant | None
) -> Audited:
    """Hold one constant against the recipe. `weight` is that which a bias belongs to.

    Raises `UnknownOperationError` for a dtype that has no semantics.
    """
    record = Audited(
        name=parameter.name if parameter else f"{constant.method}.{constant.role.replace(' ', '_')}_{constant.order}",
        key=parameter.key if parameter else None,
        method=constant.method,
        instruction=constant.instruction,
        role=constant.role,
        elements=constant.elements,
    )
    stored = stored_contents(constant, storage, source)
    expected = expected_contents(constant, parameter, source, stored)
    if expected is None:
        return replace(record, explained=False, reason=_unexplained(constant, parameter, source))
    values = expected.values
    if parameter is not None and constant.role == "bias":
        values = _or_rounded(constant, stored, values, source.tensor(parameter.key))
    record = replace(record, quantizer=expected.scheme.quantizer if expected.scheme else "")
    record = _same(record, stored, values, expected.what)
    record = _check_scales(record, constant, expected, storage, weight, source)
    if parameter is None:
        return _check_factor(record, constant, stored, expected.number)
    if record.reason and constant.role in INTEGERS:
        record = _likened(record, constant, expected, stored, source.tensor(parameter.key))
    return measure_fidelity(record, constant, stored, source.tensor(parameter.key), storage)


def _likened(record: Audited, constant: Constant, expected: Expected, stored: Tensor, weight: Tensor) -> Audited:
    """What the likeliest scheme makes of a weight whose integers or scales are not its own."""
    if expected.scales is None or expected.values.shape != stored.shape:
        return record
    made = measure(constant, expected.values, expected.scales, weight)
    equal = float((expected.values == stored).double().mean())
    return replace(record, scheme=str(expected.scheme or expected.what), equal=equal, scheme_db=made.sqnr_db)


def _unexplained(constant: Constant, parameter: Parameter | None, source: Source) -> str:
    if parameter is None:
        what = f"{constant.role}, {list(constant.shape)}"
        return f"it matches no tensor of the checkpoint, and the recipe does not define it ({what})"
    quantization = constant.stored_quantization
    if isinstance(quantization, PerGroup):
        stored = f"4-bit groups of {quantization.group_size} along axis {quantization.axis}"
    elif quantization is None:
        stored = constant.value.dtype
    else:
        stored = f"{constant.value.dtype} ({type(quantization).__name__})"
    return f"it is stored as {stored}, which the recipe {source.recipe.name} never gives"


def stored_contents(constant: Constant, storage: Storage, source: Source) -> Tensor:
    """A constant as stored, 4-bit integers unpacked to int8."""
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
    weight: Constant | None,
    source: Source,
) -> Audited:
    value, quantization = constant.value, constant.stored_quantization
    if constant.epsilon is not None and constant.epsilon != source.family.checkpoint.geometry.vision.norm_eps:
        wanted = source.family.checkpoint.geometry.vision.norm_eps
        return _wrong(record, f"its layer norm has epsilon {constant.epsilon:g}, the checkpoint {wanted:g}")
    if not isinstance(value, GraphValue):
        return record
    if isinstance(quantization, PerGroup | PerChannel) and constant.role != "bias" and expected.scales is not None:
        stored = channel_scales(value, storage)
        what = "the recipe's group scales" if isinstance(quantization, PerGroup) else "the recipe's scales of channels"
        return _same(record, stored, expected.scales.reshape(stored.shape), what)
    if isinstance(quantization, PerChannel):
        return _check_bias_scales(record, constant, weight, storage)
    if not isinstance(quantization, PerTensor):
        return record
    scale, zero_point = quantization.scale, quantization.zero_point
    if constant.role == "bias":
        given = weight.stored_quantization if weight is not None else None
        wanted = (constant.input_scale or 0.0) * (given.scale if isinstance(given, PerTensor) else 0.0)
    else:
        wanted = float(expected.scales) if expected.scales is not None else scale
    if zero_point or wanted == 0.0 or not SCALE.admits(abs(scale / wanted - 1)):
        return _wrong(record, f"scale {scale:.8g} and zero point {zero_point}, the recipe gives {wanted:.8g} and 0")
    return record


def _check_bias_scales(record: Audited, constant: Constant, weight: Constant | None, storage: Storage) -> Audited:
    """Each channel of an int32 bias has the activation's scale times that of the weight's channel."""
    if weight is None or not isinstance(constant.value, GraphValue) or not isinstance(weight.value, GraphValue):
        return _wrong(record, "it has scales of channels, and belongs to no weight")
    wanted = (constant.input_scale or 0.0) * channel_scales(weight.value, storage).double()
    scales = channel_scales(constant.value, storage).double()
    if scales.shape != wanted.shape:
        return _wrong(record, f"it has {scales.numel()} scales, its weight {wanted.numel()}")
    off = (scales / wanted - 1).abs()
    channel = int(off.argmax())
    if SCALE.admits(float(off[channel])):
        return record
    said = (
        f"the scale of channel {channel} is {float(scales[channel]):.8g}, its weight gives {float(wanted[channel]):.8g}"
    )
    return _wrong(record, said)


def _check_factor(record: Audited, constant: Constant, stored: Tensor, number: float | None) -> Audited:
    """A factor in int8 has a range of its own, and so is exact but for the rounding of its scale."""
    given = constant.quantization
    if number is None or not isinstance(given, PerTensor):
        return record
    real = (float(stored) - given.zero_point) * given.scale
    off = not FACTOR.admits(abs(real / number - 1))
    return _wrong(record, f"the factor is {real:.7g}, expected {number:.7g}") if off else record
