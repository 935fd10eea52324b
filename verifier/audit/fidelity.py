"""How far stored weights are from the checkpoint's, and whether each integer is the nearest to its weight at the scale that the file gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.storage import Storage
from verifier.audit.inventory import Constant
from verifier.audit.records import Audited
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor
from verifier.backends.xnnpack.context import channel_scales
from verifier.core.compare import decibels
from verifier.core.limits import limit
from verifier.interpret.machine import constant_tensor

NEAREST = limit("weights.tensors.worst_steps")
AT_ONCE = 1 << 18
"""Elements that are compared with the checkpoint at a time."""


@dataclass(frozen=True)
class Fidelity:
    """Stored weights, dequantized, against the checkpoint's: SQNR, the element that is off by most steps of its own scale, and how many integers are
    neither the nearest to their weight nor cut off at the end of their range."""

    sqnr_db: float
    worst_steps: float
    index: tuple[int, ...]
    not_nearest: int


def measure(constant: Constant, stored: Tensor, scales: Tensor, weight: Tensor, *, zero_point: int = 0) -> Fidelity:
    """Integers in the constant's shape, with `scales` [1], [N] or [N, G] for N rows, against a weight. Some rows at a time: a table of
    131 million elements has 1 GB in fp64."""
    target = weight.permute(0, 2, 3, 1) if constant.role == "convolution" else weight
    rows = stored.shape[0] if stored.dim() else 1
    matrix, wanted = stored.reshape(rows, -1), target.reshape(rows, -1)
    width = matrix.shape[1]
    steps_of = scales.double().reshape(rows if scales.numel() > 1 else 1, -1)
    low, high = (-8, 7) if _is_nibble(constant, stored) else (-127, 127)
    at_once = max(1, AT_ONCE // width)
    signal = noise = 0.0
    worst, not_nearest = [], 0
    for first in range(0, rows, at_once):
        chosen = slice(first, first + at_once)
        steps = steps_of if len(steps_of) == 1 else steps_of[chosen]
        steps = steps if steps.shape[1] == 1 else steps.repeat_interleave(width // steps.shape[1], 1)
        real, integers = wanted[chosen].double(), matrix[chosen].double() - zero_point
        error = (integers * steps).sub_(real).abs_()
        signal += float(real.square().sum())
        noise += float(error.square().sum())
        error.div_(steps.clamp(min=1e-30))
        worst.append(error.flatten().max(0))
        if not NEAREST.admits(float(worst[-1][0])):
            cut = ((integers <= low) & (real < integers * steps)) | ((integers >= high) & (real > integers * steps))
            not_nearest += int((~(error <= NEAREST.value) & ~cut).sum())
    block = int(torch.stack([most for most, _ in worst]).argmax())
    place = int(worst[block][1]) + block * at_once * width
    at = tuple(int(i) for i in np.unravel_index(place, stored.shape))
    return Fidelity(decibels(signal, noise), float(worst[block][0]), at, not_nearest)


def _is_nibble(constant: Constant, stored: Tensor) -> bool:
    """Whether a weight is of 4-bit integers, which are unpacked: by its dtype, or in a table by its shape."""
    if isinstance(constant.value, GraphValue):
        return constant.value.is_packed
    return constant.role == "embedding" and stored.numel() > int(np.prod(constant.shape))


def measure_fidelity(record: Audited, constant: Constant, stored: Tensor, weight: Tensor, storage: Storage) -> Audited:
    """The record with what a comparison of quantized weights with the checkpoint gives; as it is where nothing is quantized."""
    value, given = constant.value, constant.stored_quantization or constant.quantization
    zero_point, group = 0, None
    if isinstance(given, PerTensor):
        scales, zero_point = torch.full((1,), given.scale, dtype=torch.float64), given.zero_point
    elif isinstance(given, PerGroup | PerChannel) and isinstance(value, GraphValue):
        scales, group = channel_scales(value, storage), given.group_size if isinstance(given, PerGroup) else None
    elif constant.role == "embedding" and constant.scales is not None:
        scales = constant_tensor(constant.scales, storage)
    else:
        return record
    made = measure(constant, stored, scales, weight, zero_point=zero_point)
    return replace(
        record,
        sqnr_db=made.sqnr_db,
        worst_steps=made.worst_steps,
        group=(made.index[0], made.index[1] // group) if group else None,
        index=record.index if record.index is not None else made.index,
        not_nearest=made.not_nearest,
    )
