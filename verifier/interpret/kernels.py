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
from verifier.interpret import kernel_bounds as bounds
from verifier.interpret.errors import ProgramFaultError, UnknownOperationError
from verifier.interpret.operator import Evaluate, InOrder, KernelBound, Operator
from verifier.interpret.order import Order, dot, softmax, total

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


def dtype_of(name: str) -> torch.dtype:
    """PyTorch's name of an ExecuTorch dtype. Raises `UnknownOperationError`."""
    if name not in DTYPES:
        raise UnknownOperationError("a tensor of this dtype", got=name, expected=", ".join(DTYPES))
    return DTYPES[name]


ATEN: dict[str, tuple[str, KernelBound]] = {
    "aten::add.out": ("a + alpha * b", bounds.scaled_sum),
    "aten::sub.out": ("a - alpha * b", bounds.scaled_sum),
    "aten::mul.out": ("a * b", bounds.once),
    "aten::div.out": ("a / b", bounds.once),
    "aten::mul.Scalar_out": ("a * number", bounds.number_product),
    "aten::add.Scalar_out": ("a + alpha * number", bounds.scaled_sum),
    "aten::alias_copy.out": ("a copy", bounds.exact),
    "aten::clone.out": ("a copy", bounds.exact),
    "aten::any.out": ("whether any element along a dimension is true", bounds.exact),
    "aten::arange.start_out": ("numbers from start to end", bounds.stepped),
    "aten::bmm.out": ("batched matrix product", bounds.product),
    "aten::cat.out": ("tensors one after the other along a dimension", bounds.exact),
    "aten::clamp.out": ("limited to [min, max]", bounds.exact),
    "aten::constant_pad_nd.out": (
        "surrounded by a constant; the list of pads begins with the last dimension",
        bounds.exact,
    ),
    "aten::embedding.out": ("rows of a table", bounds.exact),
    "aten::eq.Scalar_out": ("a == number", bounds.exact),
    "aten::expand_copy.out": ("broadcast to a shape", bounds.exact),
    "aten::full_like.out": ("a tensor of one number", bounds.exact),
    "aten::index.Tensor_out": ("elements picked by index tensors", bounds.exact),
    "aten::index_put.out": ("a copy with elements replaced by index tensors", bounds.put),
    "aten::logical_not.out": ("not a", bounds.exact),
    "aten::mean.out": ("mean over dimensions", bounds.mean),
    "aten::native_layer_norm.out": (
        "(x - mean) / sqrt(variance + eps) * weight + bias; also mean and 1 / sqrt(variance + eps)",
        bounds.layer_norm,
    ),
    "aten::permute_copy.out": ("dimensions in another order", bounds.exact),
    "aten::rsqrt.out": ("1 / sqrt(x)", bounds.function("aten::rsqrt")),
    "aten::scalar_tensor.out": ("a number as a tensor", bounds.exact),
    "aten::select_copy.int_out": ("one index of a dimension", bounds.exact),
    "aten::sigmoid.out": ("1 / (1 + exp(-x))", bounds.function("aten::sigmoid")),
    "aten::slice_copy.Tensor_out": ("start:end:step of a dimension", bounds.exact),
    "aten::squeeze_copy.dims_out": ("without dimensions of size 1", bounds.exact),
    "aten::transpose_copy.int_out": ("two dimensions swapped", bounds.exact),
    "aten::unsqueeze_copy.out": ("with a dimension of size 1 more", bounds.exact),
    "aten::view_copy.out": ("the same elements in another shape", bounds.exact),
    "aten::where.self_out": ("a where the condition holds, else b", bounds.exact),
    "aten::_softmax.out": ("softmax over a dimension", bounds.softmax),
}
"""Operators that are PyTorch's by name, with what they compute and how far a kernel may be from it. Source: executorch/kernels/portable/functions.yaml."""
_IN_FP64 = {
    "aten::mean.out",
    "aten::native_layer_norm.out",
    "aten::bmm.out",
    "aten::_softmax.out",
    "aten::rsqrt.out",
    "aten::sigmoid.out",
}
"""Sums and functions whose fp32 result depends on the order of operations: computed in fp64 and rounded once."""

KERNELS: dict[str, Operator] = {}


def _kernel(name: str, *, bound: KernelBound, in_order: InOrder | None = None) -> Callable[[Evaluate], Evaluate]:
    def register(function: Evaluate) -> Evaluate:
        KERNELS[name] = Operator(name, function, bound, in_order)
        return function

    return register


def _aten(name: str) -> Evaluate:
    packet, overload = name.removeprefix("aten::").split(".")
    operator: Any = getattr(getattr(torch.ops.aten, packet), overload)
    schema = operator._schema.arguments
    outs = [argument.name for argument in schema if argument.is_out]

    def apply(args: Sequence[Any], outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
        wide = name in _IN_FP64
        made = {
            out: torch.empty(0, dtype=_wide(dtype_of(fact.dtype), wide))
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
            made[out].to(dtype_of(fact.dtype)) for out, fact in zip(outs, outputs, strict=True) if fact is not None
        )

    apply.__doc__ = ATEN[name][0]
    return apply


def _wide(dtype: torch.dtype, wide: bool) -> torch.dtype:
    return torch.float64 if wide and dtype.is_floating_point else dtype


def _widened(value: Any, wide: bool) -> Any:
    return value.double() if wide and isinstance(value, Tensor) and value.is_floating_point() else value


def _product_in_order(args: Sequence[Any], order: Order) -> tuple[Any, ...]:
    return (dot(args[0], args[1], order),)


def _softmax_in_order(args: Sequence[Any], order: Order) -> tuple[Any, ...]:
    return (softmax(args[0].movedim(args[1], -1), order).movedim(-1, args[1]),)


def _mean_in_order(args: Sequence[Any], order: Order) -> tuple[Any, ...]:
    x = args[0]
    dims = sorted(dim % x.dim() for dim in (args[1] or range(x.dim())))
    rows = x.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
    made = total(rows, order) / rows.shape[-1]
    return (made.reshape([1 if d in dims else n for d, n in enumerate(x.shape)] if args[2] else rows.shape[:-1]),)


def _layer_norm_in_order(args: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """Variance as E[x^2] - mean^2, as kernels/portable/cpu/op_native_layer_norm.cpp has it."""
    x, shape, weight, bias, eps = args[:5]
    rows = x.flatten(-len(shape))
    mean = total(rows, order) / rows.shape[-1]
    variance = total(rows * rows, order) / rows.shape[-1] - mean * mean
    inverse = 1 / (variance + eps).sqrt()
    made = ((rows - mean) * inverse).reshape(x.shape)
    made = made if weight is None else made * weight
    kept = (*x.shape[: -len(shape)], *(1 for _ in shape))
    return (made if bias is None else made + bias, mean.reshape(kept), inverse.reshape(kept))


IN_ORDER: dict[str, InOrder] = {
    "aten::bmm.out": _product_in_order,
    "aten::_softmax.out": _softmax_in_order,
    "aten::mean.out": _mean_in_order,
    "aten::native_layer_norm.out": _layer_norm_in_order,
}
KERNELS |= {name: Operator(name, _aten(name), bound, IN_ORDER.get(name)) for name, (_, bound) in ATEN.items()}


@_kernel("aten::sym_size.int", bound=bounds.exact)
def _sym_size(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The size of one dimension, as a number."""
    return (int(args[0].shape[args[1]]),)


@_kernel("aten::_local_scalar_dense", bound=bounds.exact)
def _local_scalar(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The one element of a tensor, as a number."""
    return (args[0].item(),)


@_kernel("aten::copy_", bound=bounds.exact)
def _copy(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Overwrite the first tensor with the second, in place: how a cache is written back without custom operators."""
    args[0].copy_(args[1])
    return (args[0],)


def _prim(symbol: str, function: Callable[[Any, Any], Any]) -> None:
    def apply(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
        return (function(args[0], args[1]),)

    apply.__doc__ = f"{symbol} of two numbers. Source: executorch/kernels/prim_ops/register_prim_ops.cpp."
    name = f"executorch_prim::{symbol}.Scalar"
    KERNELS[name] = Operator(name, apply, bounds.exact)


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


@_kernel("executorch_prim::et_view.default", bound=bounds.exact)
def _view(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The same elements in another shape, sharing memory; -1 is what the others leave."""
    return (args[0].reshape([int(size) for size in args[1]]),)


@_kernel("dim_order_ops::_to_dim_order_copy.out", bound=bounds.exact)
def _to_dim_order(args: Sequence[Any], outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """A copy in the output's dtype; the order of dimensions in memory does not change what it holds."""
    assert outputs[0] is not None
    return (args[0].to(dtype_of(outputs[0].dtype), copy=True),)


_CLONE = "dim_order_ops::_clone_dim_order.out"
KERNELS[_CLONE] = Operator(_CLONE, _to_dim_order, bounds.exact)


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


@_kernel("quantized_decomposed::embedding_byte.dtype_out", bound=bounds.once)
def _embedding_byte(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Rows of an int8 table, dequantized by groups of columns. Source: executorch/kernels/quantized/cpu/op_embedding.cpp."""
    return _embedding(args, nibbles=False)


@_kernel("quantized_decomposed::embedding_4bit.dtype_out", bound=bounds.once)
def _embedding_4bit(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """The same with two 4-bit columns a byte, the first in the high nibble, stored plus 8. Source: op_embedding4b.cpp."""
    return _embedding(args, nibbles=True)


@_kernel("llama::update_cache.out", bound=bounds.exact)
def _update_cache(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """Write rows [1, S, H, D] into the cache [1, T, H, D] from a position on. Source: extension/llm/custom_ops/op_update_cache.cpp.

    The returned tensor is a dummy. Raises `ProgramFaultError` if the rows do not fit, as the runtime refuses them.
    """
    rows, cache, start = args[0], args[1], int(args[2])
    if start < 0 or start + rows.shape[1] > cache.shape[1]:
        raise ProgramFaultError(f"rows {start}..{start + rows.shape[1]} of a cache of {cache.shape[1]}")
    cache[:, start : start + rows.shape[1]] = rows
    return (None,)


def _attention_operands(args: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """Queries [1, H, S, D], keys and values [1, H, T, D] of each query head, the scale, and what is added to scores [1, 1, S, T]."""
    q, k, v, start, mask, _dropout, causal, scale = args[:8]
    length = int(start) + q.shape[1]
    if length > k.shape[1]:
        raise ProgramFaultError(f"attention over {length} rows of a cache of {k.shape[1]}")
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    added = torch.zeros(q.shape[1], length) if mask is None else mask[..., :length]
    if causal:
        seen = torch.arange(length)[None] <= torch.arange(q.shape[1])[:, None] + int(start)
        added = added.masked_fill(~seen, float("-inf"))
    return queries, keys, values, scale or q.shape[3] ** -0.5, added


def _attention_in_order(args: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """The weights are divided by their sum behind the product with the values, as op_sdpa_impl.h has it."""
    queries, keys, values, scale, added = _attention_operands(args)
    scores = dot(queries, keys.transpose(-1, -2), order) * scale + added
    weights = (scores - scores.amax(-1, keepdim=True)).double().exp().to(torch.float32)
    made = dot(weights, values, order) / total(weights, order)
    return (made.transpose(1, 2).contiguous(),)


@_kernel("llama::custom_sdpa.out", bound=bounds.attention, in_order=_attention_in_order)
def _custom_sdpa(args: Sequence[Any], _outputs: Sequence[TensorValue | None]) -> tuple[Any, ...]:
    """softmax(q k^T / sqrt(D)) v over the cache's first `start + S` rows; query i sees rows up to `start + i` if causal.

    q [1, S, H, D], k and v [1, T, Hkv, D]; H / Hkv query heads share a key head, neighbours first. Sums in fp64.
    Source: extension/llm/custom_ops/op_sdpa.cpp.
    """
    queries, keys, values, scale, added = _attention_operands(args)
    scores = queries.double() @ keys.double().transpose(-1, -2) * scale + added
    return ((torch.softmax(scores, -1) @ values.double()).transpose(1, 2).to(torch.float32).contiguous(),)
