"""The one table of dtypes: bits of an item, and its NumPy and PyTorch dtype, by ExecuTorch's names and by XNNPACK's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A dtype of a `.pte`. `short` is its name in messages, as XNNPACK's own operators are named by it. `numpy` and `torch` are how its items are read;
    both are None where nothing in the verifier reads them: 4-bit items are unpacked first (`verifier.artifact.nibbles`)."""

    item_bits: int
    short: str
    numpy: Any = None
    torch: str | None = None

    @property
    def item_bytes(self) -> int:
        """Bytes of one item. Raises `ValueError` for items that are smaller than a byte."""
        if self.item_bits % 8:
            raise ValueError(f"items of {self.item_bits} bits have no whole number of bytes")
        return self.item_bits // 8


PROGRAM = {
    "BYTE": Dtype(8, "u8", np.uint8, "uint8"),
    "CHAR": Dtype(8, "s8", np.int8, "int8"),
    "BOOL": Dtype(8, "bool", np.bool_, "bool"),
    "SHORT": Dtype(16, "s16", np.int16, "int16"),
    "HALF": Dtype(16, "f16", np.float16, "float16"),
    "BFLOAT16": Dtype(16, "bf16", None, "bfloat16"),
    "UINT16": Dtype(16, "u16"),
    "INT": Dtype(32, "s32", np.int32, "int32"),
    "FLOAT": Dtype(32, "f32", np.float32, "float32"),
    "UINT32": Dtype(32, "u32"),
    "LONG": Dtype(64, "s64", np.int64, "int64"),
    "DOUBLE": Dtype(64, "f64", np.float64, "float64"),
    "UINT64": Dtype(64, "u64"),
}
"""Dtypes of EValues. Source: executorch/schema/scalar_type.fbs."""

XNNPACK = {
    "fp32": Dtype(32, "f32", np.float32, "float32"),
    "fp16": Dtype(16, "f16"),
    "bf16": Dtype(16, "bf16"),
    "qint8": Dtype(8, "qs8", np.int8, "int8"),
    "quint8": Dtype(8, "qu8"),
    "qint32": Dtype(32, "qs32", np.int32, "int32"),
    "qcint8": Dtype(8, "qc8w", np.int8, "int8"),
    "qcint32": Dtype(32, "qc32w", np.int32, "int32"),
    "qcint4": Dtype(4, "qc4w"),
    "qbint4": Dtype(4, "qb4w"),
    "qdint8": Dtype(8, "qd8"),
    "int32": Dtype(32, "s32"),
}
"""Dtypes of values inside an XNNPACK delegate, without `xnn_datatype_`. Source: executorch/backends/xnnpack/serialization/schema.fbs."""


def program_name(torch_name: str) -> str:
    """ExecuTorch's name of a PyTorch dtype such as `float32`. Raises `KeyError`."""
    return {dtype.torch: name for name, dtype in PROGRAM.items() if dtype.torch}[torch_name]
