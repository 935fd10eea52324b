"""Embedding tables with quantized rows."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.artifact.nibbles import unpack_nibbles
from verifier.core.types import EmbeddingBits
from verifier.operators.bounds import once
from verifier.operators.operator import (
    Arguments,
    Declared,
    Evaluate,
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
    """Arguments: table, scales, zero points, the smallest and the largest integer, ids."""
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


def _overloads(name: str, evaluate: Evaluate, bits: EmbeddingBits, file: str) -> list[Operator]:
    """One computes rows in a dtype that it is told, one in the dtype of the scales: fp32 both."""
    source = f"executorch/kernels/quantized/cpu/{file}"
    return [
        Operator(
            f"quantized_decomposed::{name}.{overload}", evaluate, once, roles=_ROLES, table_bits=bits, source=source
        )
        for overload in ("out", "dtype_out")
    ]


OPERATORS = (
    *_overloads("embedding_byte", _embedding_byte, 8, "op_embedding.cpp"),
    *_overloads("embedding_4bit", _embedding_4bit, 4, "op_embedding4b.cpp"),
)
