"""Kernels of ExecuTorch's program in plain PyTorch: one entry per operator, and the registry of them.

A kernel gets its arguments unboxed (tensors, numbers, lists) and the declared outputs, and returns the outputs' contents in
order; the last argument of most, the return value, repeats the output and is not passed. Semantics are PyTorch's wherever
ExecuTorch implements an ATen operator: those run through PyTorch's own out variant, listed in `ATEN` one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifier.artifact.nibbles import unpack_nibbles
from verifier.artifact.plan import TensorValue
from verifier.interpret.errors import ProgramFaultError, UnknownOperationError

DTYPES = {
    "BYTE": torch.uint8,
    "CHAR": torch.int8,
    "BOOL": torch.bool,
    "SHORT": torch.int16,
    "HALF": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT": torch.int32,
    "FLOAT": torch.float32,
    "LONG": torch.int64,
    "DOUBLE": torch.float64,
}
ATEN = {
    "aten::add.out": "a + alpha * b",
    "aten::sub.out": "a - alpha * b",
    "aten::mul.out": "a * b",
    "aten::div.out": "a / b",
    "aten::mul.Scalar_out": "a * number",
    "aten::add.Scalar_out": "a + alpha * number",
    "aten::alias_copy.out": "a copy",
    "aten::clone.out": "a copy",
    "aten::any.out": "whether any element along a dimension is true",
    "aten::arange.start_out": "numbers from start to end",
    "aten::bmm.out": "batched matrix product",
    "aten::cat.out": "tensors one after the other along a dimension",
    "aten::clamp.out": "limited to [min, max]",
    "aten::constant_pad_nd.out": "surrounded by a constant; the list of pads begins with the last dimension",
    "aten::embedding.out": "rows of a table",
    "aten::eq.Scalar_out": "a == number",
    "aten::expand_copy.out": "broadcast to a shape",
    "aten::full_like.out": "a tensor of one number",
    "aten::index.Tensor_out": "elements picked by index tensors",
    "aten::index_put.out": "a copy with elements replaced by index tensors",
    "aten::logical_not.out": "not a",
    "aten::mean.out": "mean over dimensions",
    "aten::native_layer_norm.out": "(x - mean) / sqrt(variance + eps) * weight + bias; also mean and 1 / sqrt(variance + eps)",
    "aten::permute_copy.out": "dimensions in another order",
    "aten::rsqrt.out": "1 / sqrt(x)",
    "aten::scalar_tensor.out": "a number as a tensor",
    "aten::select_copy.int_out": "one index of a dimension",
    "aten::sigmoid.out": "1 / (1 + exp(-x))",
    "aten::slice_copy.Tensor_out": "start:end:step of a dimension",
    "aten::squeeze_copy.dims_out": "without dimensions of size 1",
    "aten::transpose_copy.int_out": "two dimensions swapped",
    "aten::unsqueeze_copy.out": "with a dimension of size 1 more",
    "aten::view_copy.out": "the same elements in another shape",
    "aten::where.self_out": "a where the condition holds, else b",
    "aten::_softmax.out": "softmax over a dimension",
}
"""Operators that are PyTorch's by name, with what they compute. Source: executorch/kernels/portable/functions.yaml."""
_IN_FP64 = {"aten::mean.out", "aten::native_layer_norm.out", "aten::bmm.out", "aten::_softmax.out", "aten::rsqrt.out"}
"""Sums and functions whose fp32 result depends on the order of operations: computed in fp64 and rounded once."""

Kernel = Callable[[Sequence[Any], Sequence[TensorValue | None]], tuple[Any, ...]]
KERNELS: dict[str, Kernel] = {}


def _kernel(name: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS[name] = function
        return function

    return register


def _aten(name: str) -> Kernel:
    packet, overload = name.removeprefix("aten::").split(".")
    operator: Any = getattr(getattr(torch.ops.aten, packet), overload)
    schema = operator._schema.arguments
    outs = [argument.name for argument in schema if argument.is_out]

    def apply(args: Sequence[Any], outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
        wide = name in _IN_FP64
        made = {
            out: torch.empty(0, dtype=_wide(DTYPES[fact.dtype], wide))
            for out, fact in zip(outs, outputs, strict=True)
            if fact is not None
        }
        given = [_widened(arg, wide) for arg in args[: len(schema) - len(outs)]]
        positional = [value for value, argument in zip(given, schema, strict=False) if not argument.kwarg_only]
        named = {
            a.name: value
            for value, a in zip(given, schema, strict=False)
            if a.kwarg_only and value is not None and a.name != "memory_format"
        }
        operator(*positional, **named, **made)
        return tuple(
            made[out].to(DTYPES[fact.dtype]) for out, fact in zip(outs, outputs, strict=True) if fact is not None
        )

    apply.__doc__ = ATEN[name]
    return apply


def _wide(dtype: torch.dtype, wide: bool) -> torch.dtype:
    return torch.float64 if wide and dtype.is_floating_point else dtype


def _widened(value: Any, wide: bool) -> Any:
    return value.double() if wide and isinstance(value, Tensor) and value.is_floating_point() else value


KERNELS |= {name: _aten(name) for name in ATEN}


@_kernel("aten::sym_size.int")
def _sym_size(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The size of one dimension, as a number."""
    return (int(args[0].shape[args[1]]),)


@_kernel("aten::_local_scalar_dense")
def _local_scalar(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The one element of a tensor, as a number."""
    return (args[0].item(),)


@_kernel("aten::copy_")
def _copy(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Overwrite the first tensor with the second, in place: how a cache is written back without custom operators."""
    args[0].copy_(args[1])
    return (args[0],)


def _prim(symbol: str, function: Callable[[Any, Any], Any]) -> None:
    def apply(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
        return (function(args[0], args[1]),)

    apply.__doc__ = f"{symbol} of two numbers. Source: executorch/kernels/prim_ops/register_prim_ops.cpp."
    KERNELS[f"executorch_prim::{symbol}.Scalar"] = apply


for _symbol, _function in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "eq": lambda a, b: a == b,
    "gt": lambda a, b: a > b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "le": lambda a, b: a <= b,
}.items():
    _prim(_symbol, _function)


@_kernel("executorch_prim::et_view.default")
def _view(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The same elements in another shape, sharing memory; -1 is what the others leave."""
    return (args[0].reshape([int(size) for size in args[1]]),)


@_kernel("dim_order_ops::_to_dim_order_copy.out")
def _to_dim_order(args: Sequence[Any], outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """A copy in the output's dtype; the order of dimensions in memory does not change what it holds."""
    assert outputs[0] is not None
    return (args[0].to(DTYPES[outputs[0].dtype], copy=True),)


KERNELS["dim_order_ops::_clone_dim_order.out"] = _to_dim_order


def _grouped_rows(integers: Tensor, scales: Tensor) -> Tensor:
    groups = scales.shape[1] if scales.dim() > 1 else 1
    real = integers.to(torch.float32).view(len(integers), groups, -1) * scales.view(len(integers), groups, 1)
    return real.view(len(integers), -1)


def _embedding(args: Sequence[Any], nibbles: bool) -> tuple[Any, ...]:
    table, scales, zero_points, ids = args[0], args[1], args[2], args[5]
    if zero_points is not None:
        raise UnknownOperationError("a quantized embedding with zero points", expected="a symmetric one")
    if int(ids.min()) < 0 or int(ids.max()) >= len(table):
        raise ProgramFaultError(f"token id outside the table of {len(table)} rows: {int(ids.min())}..{int(ids.max())}")
    rows = table[ids.reshape(-1)]
    if nibbles:
        rows = torch.from_numpy(unpack_nibbles(rows.numpy(), low_first=False))
    return (_grouped_rows(rows, scales[ids.reshape(-1)]).view(*ids.shape, -1),)


@_kernel("quantized_decomposed::embedding_byte.dtype_out")
def _embedding_byte(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Rows of an int8 table, dequantized by groups of columns. Source: executorch/kernels/quantized/cpu/op_embedding.cpp."""
    return _embedding(args, nibbles=False)


@_kernel("quantized_decomposed::embedding_4bit.dtype_out")
def _embedding_4bit(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The same with two 4-bit columns a byte, the first in the high nibble, stored plus 8. Source: op_embedding4b.cpp."""
    return _embedding(args, nibbles=True)


@_kernel("llama::update_cache.out")
def _update_cache(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Write rows [1, S, H, D] into the cache [1, T, H, D] from a position on. Source: extension/llm/custom_ops/op_update_cache.cpp.

    The returned tensor is a dummy. Raises `ProgramFaultError` if the rows do not fit, as the runtime refuses them.
    """
    rows, cache, start = args[0], args[1], int(args[2])
    if start < 0 or start + rows.shape[1] > cache.shape[1]:
        raise ProgramFaultError(f"rows {start}..{start + rows.shape[1]} of a cache of {cache.shape[1]}")
    cache[:, start : start + rows.shape[1]] = rows
    return (None,)


@_kernel("llama::custom_sdpa.out")
def _custom_sdpa(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """softmax(q k^T / sqrt(D)) v over the cache's first `start + S` rows; query i sees rows up to `start + i` if causal.

    q [1, S, H, D], k and v [1, T, Hkv, D]; H / Hkv query heads share a key head, neighbours first. Sums in fp64.
    Source: extension/llm/custom_ops/op_sdpa.cpp.
    """
    q, k, v, start, mask, _dropout, causal, scale = args[:8]
    length = int(start) + q.shape[1]
    if length > k.shape[1]:
        raise ProgramFaultError(f"attention over {length} rows of a cache of {k.shape[1]}")
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.double().transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    scores = queries @ keys.transpose(-1, -2) * (scale or q.shape[3] ** -0.5)
    if mask is not None:
        scores = scores + mask[..., :length]
    if causal:
        seen = torch.arange(length)[None] <= torch.arange(q.shape[1])[:, None] + int(start)
        scores = scores.masked_fill(~seen, float("-inf"))
    return ((torch.softmax(scores, -1) @ values).transpose(1, 2).to(torch.float32).contiguous(),)
