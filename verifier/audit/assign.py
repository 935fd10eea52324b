"""Which parameter a constant holds: by likeness of its contents, with the order of the program to break ties.

Names may be stripped from a `.pte`, and hashes change with the first wrong bit; a weight stays like itself. Every constant
of one role and shape is held against every parameter that fits, and the pairing with the most likeness wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verifier.artifact.nibbles import unpack_nibbles
from verifier.artifact.storage import Span, Storage
from verifier.audit.inventory import Constant
from verifier.backends.backend import GraphValue
from verifier.core.limits import limit
from verifier.families.checkpoint import Checkpoint
from verifier.families.family import Family, Parameter

ROWS, COLUMNS = 48, 96
"""Rows and columns of a tensor that are sampled to tell it from others: coverage, not a limit. 4,608 numbers give correlations of unlike tensors
a deviation of 0.015."""
ALIKE, ORDER, FLAT = limit("weights.alike"), limit("weights.order"), limit("weights.flat")


@dataclass(frozen=True)
class Assigned:
    """The parameter that a constant holds, None where nothing fits, and its `likeness` to it; `known` if it is like it, or follows from one that is."""

    parameter: Parameter | None = None
    likeness: float | None = None
    known: bool = False


def _stored_shape(constant: Constant, bits: int) -> tuple[int, ...]:
    """The shape of the parameter that would fit this constant."""
    shape = constant.shape
    if constant.role == "convolution":
        return (shape[0], shape[3], shape[1], shape[2])
    if constant.role == "embedding" and bits == 4:
        return (shape[0], shape[1] * 2)
    if constant.transposed:
        return shape[::-1]
    return _bare(shape) if constant.role in ("addend", "norm weight") else shape


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its leading ones."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def assign_constants(
    inventory: list[Constant], family: Family, storage: Storage, *, embedding_bits: int
) -> tuple[Assigned, ...]:
    """The parameter of each constant by its place in the inventory. Reads a sample of every constant and every tensor; works through one at a time."""
    parameters, checkpoint = family.parameters(), family.checkpoint
    groups: dict[tuple[str, str, tuple[int, ...]], list[Parameter]] = {}
    for parameter in parameters:
        tensor = checkpoint.tensor(parameter.key)
        role = family.role_of(parameter, tensor.dim())
        if role != "bias":
            shape = _bare(tuple(tensor.shape)) if role in ("addend", "norm weight") else tuple(tensor.shape)
            groups.setdefault((parameter.name.split(".")[0], role, shape), []).append(parameter)
    places: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for place, constant in enumerate(inventory):
        if constant.partner is None:
            shape = _stored_shape(constant, embedding_bits)
            places.setdefault((constant.method, constant.role, shape), []).append(place)
    chosen = [Assigned()] * len(inventory)
    for group, members in groups.items():
        constants = [inventory[place] for place in places.get(group, [])]
        for row, one in _pair(constants, members, checkpoint, storage, embedding_bits):
            chosen[places[group][row]] = one
    by_name = {parameter.name: parameter for parameter in parameters}
    for place, constant in enumerate(inventory):
        weight = chosen[constant.partner] if constant.partner is not None else Assigned()
        if weight.parameter is not None:
            bias = by_name.get(weight.parameter.module + ".bias")
            chosen[place] = Assigned(bias, known=weight.known)
    return tuple(chosen)


def _pair(
    constants: list[Constant], members: list[Parameter], checkpoint: Checkpoint, storage: Storage, bits: int
) -> list[tuple[int, Assigned]]:
    """Those that are alike find each other; the others are paired in the order of the computation."""
    if not constants:
        return []
    ordered = sorted(members, key=lambda parameter: parameter.order)
    stored = np.stack([_unit(_sample(constant, storage, bits)) for constant in constants])
    wanted = np.stack([_unit(_sampled(checkpoint.tensor(p.key), constants[0])) for p in ordered])
    likeness = stored @ wanted.T
    distance = np.abs(np.arange(len(constants))[:, None] - np.arange(len(ordered))[None])
    worth = np.where(likeness >= ALIKE.value, likeness, 0.0) - ORDER.value * distance
    from scipy.optimize import linear_sum_assignment  # a fifth of a second

    rows, columns = linear_sum_assignment(worth, maximize=True)
    flat = np.abs(wanted).max(1) == 0  # a tensor of one value, such as untrained norms: nothing to be like
    # as many constants as parameters: one that is unlike its parameter was damaged, and the comparison will say where
    complete = len(constants) == len(ordered)
    pairs = []
    for row, column in zip(rows, columns, strict=True):
        known = ALIKE.admits(float(likeness[row, column])) or bool(flat[column])
        if complete or known:
            alike = None if flat[column] else float(likeness[row, column])
            pairs.append((int(row), Assigned(ordered[column], alike, known)))
    return pairs


def _picked(size: int, count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))


def _sampled(tensor: Tensor, constant: Constant) -> NDArray[np.float32]:
    """Some elements of a tensor as the constant would store it; no others are read from the file."""
    if constant.role == "convolution":
        tensor = tensor.permute(0, 2, 3, 1)
    tensor = tensor.reshape(_bare(tuple(tensor.shape))) if constant.role == "addend" else tensor
    matrix = tensor.flatten(1) if tensor.dim() > 1 else tensor[None]
    rows, columns = (_picked(size, count) for size, count in zip(matrix.shape, (ROWS, COLUMNS), strict=True))
    if len(matrix) == 1:
        columns = _picked(matrix.shape[1], ROWS * COLUMNS)
    return matrix[rows][:, columns].to(torch.float32).numpy()


def _sample(constant: Constant, storage: Storage, bits: int) -> NDArray[np.float32]:
    """The same elements of the stored constant; integers as they are, since likeness does not mind a scale."""
    value = constant.value
    assert value.constant is not None
    shape = _stored_shape(constant, bits) if constant.role == "embedding" else constant.shape
    rows = int(np.prod(shape[:-1])) if constant.role == "addend" else shape[0] if len(shape) > 1 else 1
    picked_rows, picked_columns = (COLUMNS, ROWS) if constant.transposed else (ROWS, COLUMNS)
    width = int(np.prod(shape)) // max(rows, 1)
    dtype = value.dtype
    item_bits = (
        4
        if (isinstance(value, GraphValue) and value.is_packed) or (constant.role == "embedding" and bits == 4)
        else {"FLOAT": 32, "fp32": 32}.get(dtype, 8)
    )
    row_bytes = width * item_bits // 8
    whole = storage.read(Span(value.constant.offset, rows * row_bytes))  # mapped: only these rows are read
    raw = whole.reshape(rows, row_bytes)[_picked(rows, picked_rows)]
    if item_bits == 4:
        nibbles = unpack_nibbles(raw.reshape(-1), low_first=constant.role != "embedding")
        sampled = nibbles.reshape(len(raw), -1).astype(np.float32)
    else:
        sampled = raw.view(np.float32 if item_bits == 32 else np.int8).astype(np.float32)
    columns = _picked(width, ROWS * COLUMNS if rows == 1 else picked_columns)
    out: NDArray[np.float32] = sampled[:, columns]
    return out.T if constant.transposed else out


def _unit(sample: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = sample.reshape(-1).astype(np.float64)
    centred = flat - flat.mean()
    norm = np.linalg.norm(centred)
    out: NDArray[np.float64] = (
        centred / norm if norm > FLAT.value * max(1.0, float(np.abs(flat).max())) else np.zeros_like(flat)
    )
    return out
