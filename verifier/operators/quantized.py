"""Embedding tables with quantized rows."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.artifact.nibbles import unpack_nibbles
from verifier.operators.bounds import once
from verifier.operators.operator import (
    Arguments,
    Declared,
    Operator,
    ProgramFaultError,
    Results,
    Role,
    UnknownOperationError,
)


def _grouped_rows(integers: Tensor, scales: Tensor) -> Tensor:
    groups = scales.shape[1] if scales.dim() > 1 else 1
    real = integers.to(torch.float32).view(len(integers), groups, -1) * scales.view(len(integers), groups, 1)
    return real.view(len(integers), -1)


def _embedding(args: Arguments, nibbles: bool) -> Results:
    table, scales, zero_points, ids = args[0], args[1], args[2], args[5]
    if zero_points is not None:
        raise UnknownOperationError("cannot evaluate an embedding with zero points, only symmetric ones are supported")
    if int(ids.min()) < 0 or int(ids.max()) >= len(table):
        raise ProgramFaultError(f"token id outside the table of {len(table)} rows: {int(ids.min())}..{int(ids.max())}")
    rows = table[ids.reshape(-1)]
    if nibbles:
        rows = torch.from_numpy(unpack_nibbles(rows.numpy(), low_first=False))
    return (_grouped_rows(rows, scales[ids.reshape(-1)]).view(*ids.shape, -1),)


def _embedding_byte(args: Arguments, _outputs: Declared) -> Results:
    """Rows of an int8 table, dequantized by groups of columns."""
    return _embedding(args, nibbles=False)


def _embedding_4bit(args: Arguments, _outputs: Declared) -> Results:
    """The same with two 4-bit columns a byte, the first in the high nibble, stored plus 8."""
    return _embedding(args, nibbles=True)


_ROLES: tuple[Role, ...] = ("embedding", "embedding scales")
OPERATORS = (
    Operator(
        "quantized_decomposed::embedding_byte.dtype_out",
        _embedding_byte,
        once,
        roles=_ROLES,
        table_bits=8,
        source="executorch/kernels/quantized/cpu/op_embedding.cpp",
    ),
    Operator(
        "quantized_decomposed::embedding_4bit.dtype_out",
        _embedding_4bit,
        once,
        roles=_ROLES,
        table_bits=4,
        source="executorch/kernels/quantized/cpu/op_embedding4b.cpp",
    ),
)
