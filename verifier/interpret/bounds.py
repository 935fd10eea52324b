"""How far a correct kernel may be from the interpreter: a running error bound for every fp32 value, element by element.

Rounding in fp32 has unit roundoff u = 2^-24. Every operation passes on the errors of its operands by its derivative and adds
its own: one rounding for IEEE operations, a stated number of units for XNNPACK's polynomials, and for a sum of K products
4 (sqrt(K) + 1) u times the sum of their magnitudes (and for a linear on dynamically quantized rows a step of every activation
that lies within fp32's rounding of a tie), since order and blocking are the kernel's own affair (Higham 2002,
Accuracy and Stability, ch. 3 and 4; the errors of K roundings add up like sqrt(K), and 4 is almost seven standard
deviations of their uniform distribution). Nothing here is fitted: a bound holds for any
kernel that computes the operation in fp32. Values of int8 have no bound; they are judged in steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifier.artifact.xnnpack import Node, PerToken
from verifier.interpret.arithmetic import QuantizedRows, dequantize_rows, multiply_groups
from verifier.interpret.nodes import NODES, Context, dequantized_filter, grouped_weights, has_groups

UNIT = 2.0**-24
FUNCTION_UNITS = {
    "XNNReciprocalSquareRoot": 6.0,
    "XNNSquareRoot": 2.0,
    "XNNSigmoid": 8.0,
    "XNNGelu": 16.0,
    "XNNTanh": 16.0,
    "XNNExp": 8.0,
    "XNNSquare": 1.0,
    "XNNSoftmax": 16.0,
}
"""Rounding units allowed to XNNPACK's approximations, relative to their result: a few ulps (2 units each) for a polynomial, twice
that where a rational function, a sum or a division follows. Of the bounds built from them llava_tiny uses 0.63 at most."""
ROUNDED_UP = 1 + 2.0**-12
"""A bound that is itself summed in fp32 stays one: sums of a group are right to 2^-12 for any group of 4096 channels and less."""
_MOVES = {"XNNStaticTranspose", "XNNStaticReshape", "XNNStaticSlice", "XNNNegate", "XNNClamp"}


def sum_units(terms: int) -> float:
    """Rounding units of a sum of `terms` products, relative to the sum of their magnitudes."""
    return 4.0 * math.sqrt(terms) + 4.0


def node_bound(node: Node, values: Context, bounds: dict[int, Tensor], result: Tensor) -> Tensor | None:
    """The bound of a node's fp32 result, fp64 of its shape; None if the result is int8."""
    if values.fact(node.output).quantization is not None or isinstance(result, QuantizedRows):
        return None
    out = result.double().abs()
    if node.kind in _MOVES or node.kind.startswith("XNNConcatenate"):
        moved = dict(values.contents) | {id: _bound(values, bounds, id) for id in node.inputs if id is not None}
        made: Any = NODES[node.kind](node, Context(values.graph, values.storage, moved))
        return made.abs() if isinstance(made, Tensor) else None
    if node.kind == "XNNConvert":
        return UNIT * out
    if node.kind == "XNNFullyConnected":
        return _linear(node, values, bounds) + UNIT * out
    if len(node.inputs) == 2:
        return _binary(node, values, bounds, out)
    return _function(node, values, bounds, out)


def _bound(values: Context, bounds: dict[int, Tensor], id: int | None) -> Tensor:
    if id in bounds:
        return bounds[id]
    content = values.contents.get(id if id is not None else -1)
    shape = content.shape if isinstance(content, Tensor) else values.fact(id).dims
    return torch.zeros(shape, dtype=torch.float64)


def _linear(node: Node, values: Context, bounds: dict[int, Tensor]) -> Tensor:
    first = values.contents.get(node.inputs[0] if node.inputs[0] is not None else -1)
    fact = values.fact(node.inputs[1])
    if isinstance(first, QuantizedRows) and has_groups(fact):
        integers, scales = grouped_weights(fact, values.storage)
        allowed = sum_units(integers.shape[1]) * UNIT * dequantize_rows(first).abs() + first.tied * first.scale.double()
        return ROUNDED_UP * multiply_groups(allowed.to(torch.float32), integers.abs(), scales)
    weights = dequantized_filter(values.fact(node.inputs[1]), values.storage).abs().T
    dynamic = isinstance(values.fact(node.inputs[0]).quantization, PerToken)
    x = dequantize_rows(first).abs() if isinstance(first, QuantizedRows) else values.real(node.inputs[0]).double().abs()
    passed = torch.zeros(()).double() if dynamic else _bound(values, bounds, node.inputs[0]) @ weights
    tipped = (first.tied * first.scale.double()) @ weights if isinstance(first, QuantizedRows) else 0.0
    return sum_units(weights.shape[0]) * UNIT * (x @ weights) + passed + tipped


def _binary(node: Node, values: Context, bounds: dict[int, Tensor], out: Tensor) -> Tensor:
    a, b = (values.tensor(id).double().abs() for id in node.inputs)
    a_bound, b_bound = (_bound(values, bounds, id) for id in node.inputs)
    if node.kind == "XNNMultiply":
        return a * b_bound + b * a_bound + UNIT * out
    if node.kind == "XNNDiv":
        return (a_bound + out * b_bound) / b.clamp(min=1e-300) + UNIT * out
    if node.kind == "XNNBatchMatrixMultiply":
        return a @ b_bound + a_bound @ b + sum_units(a.shape[-1]) * UNIT * (a @ b)
    return a_bound + b_bound + UNIT * out


def _function(node: Node, values: Context, bounds: dict[int, Tensor], out: Tensor) -> Tensor:
    x, x_bound = values.tensor(node.inputs[0]).double().abs(), _bound(values, bounds, node.inputs[0])
    slopes: dict[str, Callable[[], Tensor]] = {
        "XNNReciprocalSquareRoot": lambda: 0.5 * out / x.clamp(min=1e-300),
        "XNNSquareRoot": lambda: 0.5 / out.clamp(min=1e-150),
        "XNNSigmoid": lambda: out,  # s' = s (1 - s) <= s
        "XNNGelu": lambda: torch.full_like(out, 1.13),
        "XNNTanh": lambda: torch.ones_like(out),
        "XNNExp": lambda: out,
        "XNNSquare": lambda: 2 * x,
    }
    own = FUNCTION_UNITS[node.kind] * UNIT * out
    if node.kind == "XNNSoftmax":
        # exp(x - max): the difference is rounded, and exp turns its absolute error into a relative one
        range_bound = UNIT * (x + x.amax(-1, keepdim=True))
        return out * (2 * x_bound.amax(-1, keepdim=True) + 2 * range_bound) + own
    return slopes[node.kind]() * x_bound + own


def kernel_bounds(name: str, args: Sequence[Any], results: Sequence[Any]) -> list[Tensor | None]:
    """Bounds of a kernel's fp32 results for exact operands; zero for kernels that only move values, None for integers."""
    if name == "aten::mean.out":
        return [_mean_bound(args)]
    if name == "aten::native_layer_norm.out":
        return _layer_norm_bounds(args, results)
    if name == "llama::custom_sdpa.out":
        return [_attention_bound(args)]
    rounded = 2.0 if name in _ROUNDED_TWICE else 1.0 if name in _ROUNDED else 0.0
    return [
        rounded * UNIT * r.double().abs() if isinstance(r, Tensor) and r.is_floating_point() else None for r in results
    ]


_ROUNDED = {
    "aten::add.out",
    "aten::sub.out",
    "aten::mul.out",
    "aten::div.out",
    "aten::mul.Scalar_out",
    "aten::add.Scalar_out",
    "quantized_decomposed::embedding_byte.dtype_out",
    "quantized_decomposed::embedding_4bit.dtype_out",
}
_ROUNDED_TWICE = {"aten::rsqrt.out", "aten::sigmoid.out"}


def _mean_bound(args: Sequence[Any]) -> Tensor:
    x, dims, keep = args[0].double().abs(), args[1], args[2]
    terms = 1
    for dim in dims:
        terms *= x.shape[dim]
    out: Tensor = sum_units(terms) * UNIT * x.mean(dims, keepdim=keep)
    return out


def _layer_norm_bounds(args: Sequence[Any], results: Sequence[Any]) -> list[Tensor | None]:
    """Mean; then variance, which a kernel may take as E[x^2] - mean^2 and lose what cancels; then the scaled difference."""
    x, shape, weight, bias, eps = args[0].double(), args[1], args[2], args[3], args[4]
    units = sum_units(shape[-1]) * UNIT
    mean_bound = units * x.abs().mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True) + eps
    spread_bound = units * (x.square().mean(-1, keepdim=True) / variance)  # relative, of 1 / sqrt(variance)
    inverse = variance.rsqrt()
    scale = torch.ones(()).double() if weight is None else weight.double().abs()
    centred = (x - x.mean(-1, keepdim=True)).abs()
    shift = torch.zeros(()).double() if bias is None else bias.double().abs()
    first = scale * inverse * (mean_bound + UNIT * x.abs() + centred * (spread_bound + 4 * UNIT)) + 2 * UNIT * (
        shift + results[0].double().abs()
    )
    return [first, mean_bound, inverse * (spread_bound + 6 * UNIT)]


def _attention_bound(args: Sequence[Any]) -> Tensor:
    q, k, v, start = args[0].double().abs(), args[1].double().abs(), args[2].double().abs(), int(args[3])
    length = start + q.shape[1]
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    scores = (queries @ keys.transpose(-1, -2)).amax(-1, keepdim=True) * q.shape[3] ** -0.5
    score_bound = sum_units(q.shape[3]) * UNIT * scores
    # any convex combination of the values is at most their largest magnitude
    largest = values.amax(-2, keepdim=True)
    out: Tensor = ((2 * score_bound + (sum_units(length) + 16) * UNIT) * largest).transpose(1, 2)
    return out
