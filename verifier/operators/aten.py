"""Operators of ATen: PyTorch's semantics, run through PyTorch's own out variant of the same name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verifier.operators import bounds
from verifier.operators.bounds import exact
from verifier.operators.operator import (
    Arguments,
    Declared,
    Evaluate,
    KernelBound,
    Operator,
    Results,
    RowWrite,
    dtype_of,
)
from verifier.operators.order import Order, dot, softmax, total

HEAVY_WITHOUT_SEMANTICS = (
    "aten::addmm",
    "aten::mm",
    "aten::linear",
    "aten::convolution",
    "aten::_native_batch_norm_legit_no_training",
)
"""Work that must be delegated like that of records with `heavy`, by operators that have no record: delegated they never appear in a program."""


def _evaluate(name: str, what: str, *, wide: bool) -> Evaluate:
    """PyTorch's out variant; `wide` computes in fp64 and rounds once."""
    packet, overload = name.removeprefix("aten::").split(".")
    operator: Any = getattr(getattr(torch.ops.aten, packet), overload)
    schema = operator._schema.arguments
    outs = [argument.name for argument in schema if argument.is_out]

    def apply(args: Arguments, outputs: Declared) -> Results:
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

    apply.__doc__ = what
    return apply


def _wide(dtype: torch.dtype, wide: bool) -> torch.dtype:
    return torch.float64 if wide and dtype.is_floating_point else dtype


def _widened(value: Any, wide: bool) -> Any:
    return value.double() if wide and isinstance(value, Tensor) and value.is_floating_point() else value


def _aten(name: str, what: str, bound: KernelBound, *, wide: bool = False, **facts: Any) -> Operator:
    """A record of `what` PyTorch computes under this name. `wide`: a sum or a function whose fp32 result depends on the order of operations."""
    source = "executorch/kernels/portable/functions.yaml"
    return Operator(name, _evaluate(name, what, wide=wide), bound, source=source, **facts)


def _product_in_order(args: Arguments, order: Order) -> Results:
    return (dot(args[0], args[1], order),)


def _softmax_in_order(args: Arguments, order: Order) -> Results:
    return (softmax(args[0].movedim(args[1], -1), order).movedim(-1, args[1]),)


def _mean_in_order(args: Arguments, order: Order) -> Results:
    x = args[0]
    dims = sorted(dim % x.dim() for dim in (args[1] or range(x.dim())))
    rows = x.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
    made = total(rows, order) / rows.shape[-1]
    return (made.reshape([1 if d in dims else n for d, n in enumerate(x.shape)] if args[2] else rows.shape[:-1]),)


def _layer_norm_in_order(args: Arguments, order: Order) -> Results:
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


def _copy(args: Arguments, _outputs: Declared) -> Results:
    """Overwrite the first tensor with the second, in place: how a cache is written back without custom operators."""
    args[0].copy_(args[1])
    return (args[0],)


OPERATORS = (
    _aten("aten::add.out", "a + alpha * b", bounds.scaled_sum),
    _aten("aten::sub.out", "a - alpha * b", bounds.scaled_sum),
    _aten("aten::mul.out", "a * b", bounds.once, roles=("factor",)),
    _aten("aten::div.out", "a / b", bounds.once),
    _aten("aten::mul.Scalar_out", "a * number", bounds.number_product),
    _aten("aten::add.Scalar_out", "a + alpha * number", bounds.scaled_sum),
    _aten("aten::alias_copy.out", "a copy", exact),
    _aten("aten::clone.out", "a copy", exact),
    _aten("aten::any.out", "whether any element along a dimension is true", exact),
    _aten("aten::arange.start_out", "numbers from start to end", bounds.stepped),
    _aten("aten::bmm.out", "batched matrix product", bounds.product, wide=True, in_order=_product_in_order, heavy=True),
    _aten("aten::cat.out", "tensors one after the other along a dimension", exact),
    _aten("aten::clamp.out", "limited to [min, max]", exact),
    _aten("aten::constant_pad_nd.out", "surrounded by a constant; pads begin with the last dimension", exact),
    _aten("aten::embedding.out", "rows of a table", exact, roles=("embedding", "embedding scales"), table_bits=32),
    _aten("aten::eq.Scalar_out", "a == number", exact),
    _aten("aten::expand_copy.out", "broadcast to a shape", exact),
    _aten("aten::flip.out", "dimensions reversed", exact),
    _aten("aten::full_like.out", "a tensor of one number", exact),
    _aten("aten::index.Tensor_out", "elements picked by index tensors", exact),
    _aten(
        "aten::index_put.out",
        "a copy with elements replaced by index tensors",
        bounds.put,
        rows=RowWrite(cache=0, rows=2, axis=2),
    ),
    _aten("aten::neg.out", "-a", exact),
    *(
        _aten(f"aten::{name}.Tensor_out", f"a {symbol} b", exact, roles=("positions",))
        for name, symbol in (("le", "<="), ("lt", "<"), ("ge", ">="), ("gt", ">"), ("eq", "=="))
    ),
    _aten("aten::logical_not.out", "not a", exact),
    _aten("aten::mean.out", "mean over dimensions", bounds.mean, wide=True, in_order=_mean_in_order, statistic=True),
    _aten(
        "aten::native_layer_norm.out",
        "(x - mean) / sqrt(variance + eps) * weight + bias; also mean and 1 / sqrt(variance + eps)",
        bounds.layer_norm,
        wide=True,
        in_order=_layer_norm_in_order,
        roles=("unknown", "unknown", "norm weight", "norm bias", "epsilon"),
    ),
    _aten("aten::permute_copy.out", "dimensions in another order", exact),
    _aten("aten::rsqrt.out", "1 / sqrt(x)", bounds.function("aten::rsqrt"), wide=True),
    _aten("aten::scalar_tensor.out", "a number as a tensor", exact),
    _aten("aten::select_copy.int_out", "one index of a dimension", exact),
    _aten("aten::sigmoid.out", "1 / (1 + exp(-x))", bounds.function("aten::sigmoid"), wide=True),
    _aten("aten::slice_copy.Tensor_out", "start:end:step of a dimension", exact, roles=("rope",)),
    _aten("aten::squeeze_copy.dims_out", "without dimensions of size 1", exact),
    _aten("aten::transpose_copy.int_out", "two dimensions swapped", exact),
    _aten("aten::unsqueeze_copy.out", "with a dimension of size 1 more", exact),
    _aten("aten::view_copy.out", "the same elements in another shape", exact),
    _aten("aten::where.self_out", "a where the condition holds, else b", exact, roles=("unknown", "fill")),
    _aten("aten::_softmax.out", "softmax over a dimension", bounds.softmax, wide=True, in_order=_softmax_in_order),
    Operator(
        "aten::copy_", _copy, exact, writes=0, part="kv_cache", source="executorch/kernels/portable/cpu/op_copy.cpp"
    ),
)
