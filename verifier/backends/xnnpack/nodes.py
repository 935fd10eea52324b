"""XNNPACK nodes in plain PyTorch: semantics and bound of each node type, and the registry of them.

A value is an fp32 tensor, an int8 tensor whose scale and zero point stand in its `GraphValue`, or `QuantizedRows`. Layout
follows XNNPACK: activations NHWC, filters of a convolution [O, H, W, I], of a fully connected layer [N, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.backends.backend import GraphValue, Node
from verifier.backends.quantization import PerTensor, PerToken
from verifier.backends.xnnpack import bounds as node_bounds
from verifier.backends.xnnpack.arithmetic import (
    QuantizedRows,
    add_quantized,
    centred_rows,
    dequantize_rows,
    multiply_groups,
    multiply_in_order,
    quantize,
    quantize_rows,
    requantize,
)
from verifier.backends.xnnpack.bounds import bound_of
from verifier.backends.xnnpack.context import (
    TRANSPOSED,
    Bounds,
    Context,
    Operand,
    channel_scales,
    constant_weights,
    dequantized_filter,
    grouped_weights,
    linear_weights,
    static_range,
)
from verifier.operators.operator import Registry, Role, UnknownOperationError
from verifier.operators.order import dot, softmax

NodeFunction = Callable[[Node, Context], Operand]
NodeBound = Callable[[Node, Context, Bounds, Operand], Tensor]
"""Of the fp32 result of a node, from the bounds of its operands: fp64 of the result's shape."""
_SOURCE = "executorch/backends/xnnpack/runtime/XNNCompiler.cpp"


@dataclass(frozen=True)
class NodeOperator:
    """A node of an XNNPACK delegate. `bound` is asked only where the result is not static int8.

    `converts` says that it changes the quantization of its operand and nothing else, `moves` that it rearranges elements and keeps their
    quantization step. `roles` are those of constants among its operands, by place; the last one holds for all that follow. `addend` is the role
    of a constant that was added to its operand. `source` is what its semantics were read from.
    """

    name: str
    evaluate: NodeFunction
    bound: NodeBound
    converts: bool = False
    moves: bool = False
    roles: tuple[Role, ...] = ()
    addend: Role = "addend"
    source: str = _SOURCE


_RECORDS: list[NodeOperator] = []


def _node(
    name: str, *, bound: NodeBound, converts: bool = False, roles: tuple[Role, ...] = ()
) -> Callable[[NodeFunction], NodeFunction]:
    def register(function: NodeFunction) -> NodeFunction:
        _RECORDS.append(NodeOperator(name, function, bound, converts=converts, roles=roles))
        return function

    return register


@_node("XNNConvert", bound=node_bounds.of_convert, converts=True)
def _convert(node: Node, context: Context) -> Operand:
    """Between fp32 and int8: static (`quantize`, `dequantize`) or per row while running (`quantize_rows`)."""
    target = context.fact(node.output).quantization
    if isinstance(target, PerToken):
        if target.nonbatch_dims != 1:
            raise UnknownOperationError(
                f"cannot evaluate dynamic quantization over {target.nonbatch_dims} dimensions, only over one is supported"
            )
        return quantize_rows(context.real(node.inputs[0]))
    if target is None:
        return context.real(node.inputs[0])
    if context.fact(node.inputs[0]).quantization is not None:
        raise UnknownOperationError(
            "cannot evaluate XNNConvert between two int8 ranges, only from or to fp32 is supported"
        )
    return quantize(
        context.tensor(node.inputs[0]), scale=static_range(target).scale, zero_point=static_range(target).zero_point
    )


@_node("XNNFullyConnected", bound=node_bounds.of_linear, roles=("linear", "linear", "bias"))
def _fully_connected(node: Node, context: Context) -> Operand:
    """y = x W^T + b. Three kinds: per-row int8 times 4- or 8-bit weights to fp32 (qd8-f32-qb4w, qd8-f32-qc8w), static
    int8 throughout with int32 bias (qs8), and fp32. Sums in fp64."""
    x_id, w_id, b_id = node.inputs
    x_fact, w_fact, out = context.fact(x_id), context.fact(w_id), context.fact(node.output)
    if node.attributes["flags"] not in (0, TRANSPOSED) or (
        node.attributes["flags"] and w_fact.quantization is not None
    ):
        raise UnknownOperationError(
            f"cannot evaluate {node.kind} with flags {node.attributes['flags']}, only 0, and 1 for weights in fp32, are supported"
        )
    if isinstance(x_fact.quantization, PerToken):
        rows = context.contents[x_fact.id]
        assert isinstance(rows, QuantizedRows)
        if w_fact.has_groups and context.order is not None:
            weights, scales = grouped_weights(w_fact, context.storage)
            result = multiply_in_order(
                rows, weights, scales, offset=context.order.offset, pieces=context.order.pieces
            ).double()
        elif w_fact.has_groups:
            weights, scales = grouped_weights(w_fact, context.storage)
            result = multiply_groups(centred_rows(rows), weights, scales) * rows.scale.double()
        else:
            result = dequantize_rows(rows) @ dequantized_filter(w_fact, context.storage).T
        return (result if b_id is None else result + context.tensor(b_id).double()).to(torch.float32)
    if x_fact.quantization is None:
        weights = linear_weights(node, context).T
        if context.order is None:
            result = context.tensor(x_id).double() @ weights
        else:
            result = dot(context.tensor(x_id), weights.to(torch.float32), context.order).double()
        return (result if b_id is None else result + context.tensor(b_id).double()).to(torch.float32)
    x_range, out_range = static_range(x_fact.quantization), static_range(out.quantization)
    weights = constant_weights(w_fact, context.storage).double()
    if isinstance(w_fact.quantization, PerTensor):
        weights = weights - w_fact.quantization.zero_point
    sums = (context.tensor(x_id).double() - x_range.zero_point) @ weights.T
    if b_id is not None:
        sums = sums + context.tensor(b_id).double()
    return requantize(sums, scale=_ratio(x_range, w_fact, out_range, context), zero_point=out_range.zero_point)


def transposes_weight(node: Node) -> bool:
    """Whether a node multiplies with a weight [K, N]."""
    operator = NODES.find(node.kind)
    return operator is not None and "linear" in operator.roles and node.attributes.get("flags") == TRANSPOSED


def _ratio(x_range: PerTensor, weight: GraphValue, out_range: PerTensor, context: Context) -> Tensor:
    scale = torch.tensor(x_range.scale, dtype=torch.float32) * channel_scales(weight, context.storage)
    return scale / torch.tensor(out_range.scale, dtype=torch.float32)


@_node("XNNConv2d", bound=node_bounds.of_convolution, roles=("convolution", "convolution", "bias"))
def _conv2d(node: Node, context: Context) -> Operand:
    """Convolution in NHWC, static int8 with int32 bias or fp32, one group. Padding adds real zeros."""
    a = node.attributes
    if a["groups"] != 1 or a["dilation_height"] != 1 or a["dilation_width"] != 1 or a["flags"]:
        raise UnknownOperationError(
            "cannot evaluate a grouped, dilated or flagged XNNConv2d, only plain ones are supported", got=a
        )
    x_id, w_id, b_id = node.inputs
    x_fact, w_fact, out = context.fact(x_id), context.fact(w_id), context.fact(node.output)
    if x_fact.quantization is None and context.order is not None:
        filters = context.tensor(w_id)
        sums = dot(node_bounds.windows(context.tensor(x_id), filters, node), filters.flatten(1).T, context.order)
        return sums if b_id is None else sums + context.tensor(b_id)
    weights = constant_weights(w_fact, context.storage).double().permute(0, 3, 1, 2)
    x = context.tensor(x_id).double().permute(0, 3, 1, 2)
    if x_fact.quantization is not None:
        x = x - static_range(x_fact.quantization).zero_point
        weights = weights - (w_fact.quantization.zero_point if isinstance(w_fact.quantization, PerTensor) else 0)
    x = functional.pad(x, (a["padding_left"], a["padding_right"], a["padding_top"], a["padding_bottom"]))
    sums = functional.conv2d(x, weights, stride=(a["subsampling_height"], a["subsampling_width"])).permute(0, 2, 3, 1)
    if b_id is not None:
        sums = sums + context.tensor(b_id).double()
    if x_fact.quantization is None:
        return sums.to(torch.float32)
    out_range = static_range(out.quantization)
    scale = _ratio(static_range(x_fact.quantization), w_fact, out_range, context)
    return requantize(sums, scale=scale, zero_point=out_range.zero_point)


@_node("XNNAdd", bound=node_bounds.of_sum, roles=("addend",))
def _add(node: Node, context: Context) -> Operand:
    """a + b with broadcasting; in int8 by fixed point (`add_quantized`)."""
    if context.fact(node.output).quantization is None:
        return context.tensor(node.inputs[0]) + context.tensor(node.inputs[1])
    a, b, out = (static_range(context.fact(id).quantization) for id in (*node.inputs, node.output))
    return add_quantized(
        context.tensor(node.inputs[0]),
        context.tensor(node.inputs[1]),
        a_ratio=a.scale / out.scale,
        b_ratio=b.scale / out.scale,
        zero_points=(a.zero_point, b.zero_point, out.zero_point),
    )


@_node("XNNMultiply", bound=node_bounds.of_product, roles=("factor",))
def _multiply(node: Node, context: Context) -> Operand:
    """a * b with broadcasting; in int8 the product of both minus their zero points, requantized in fp32."""
    if context.fact(node.output).quantization is None:
        return context.tensor(node.inputs[0]) * context.tensor(node.inputs[1])
    a, b, out = (static_range(context.fact(id).quantization) for id in (*node.inputs, node.output))
    product = (context.tensor(node.inputs[0]).double() - a.zero_point) * (
        context.tensor(node.inputs[1]).double() - b.zero_point
    )
    scale = torch.tensor(a.scale, dtype=torch.float32) * torch.tensor(b.scale, dtype=torch.float32)
    return requantize(product, scale=scale / torch.tensor(out.scale, dtype=torch.float32), zero_point=out.zero_point)


def _only_real(node: Node, context: Context) -> None:
    if any(context.fact(id).quantization is not None for id in (*node.inputs, node.output)):
        raise UnknownOperationError(
            f"cannot evaluate {node.kind} on quantized values, only fp32 is supported",
            got=[context.fact(id) for id in node.inputs],
        )


@_node("XNNSubtract", bound=node_bounds.of_sum, roles=("mean",))
def _subtract(node: Node, context: Context) -> Operand:
    """a - b in fp32, with broadcasting."""
    _only_real(node, context)
    return context.tensor(node.inputs[0]) - context.tensor(node.inputs[1])


@_node("XNNDiv", bound=node_bounds.of_quotient, roles=("std",))
def _divide(node: Node, context: Context) -> Operand:
    """a / b in fp32, with broadcasting."""
    _only_real(node, context)
    return context.tensor(node.inputs[0]) / context.tensor(node.inputs[1])


def _through_fp64(
    function: Callable[[Tensor], Tensor], name: str, what: str, bound: NodeBound, addend: Role = "addend"
) -> NodeOperator:
    def apply(node: Node, context: Context) -> Operand:
        _only_real(node, context)
        return function(context.tensor(node.inputs[0]).double()).to(torch.float32)

    apply.__doc__ = f"{what}, computed in fp64 and rounded once; XNNPACK's polynomial is a few ulps away."
    return NodeOperator(name, apply, bound, addend=addend)


_RECORDS += (
    _through_fp64(torch.rsqrt, "XNNReciprocalSquareRoot", "1 / sqrt(x)", node_bounds.of_reciprocal_root, "epsilon"),
    _through_fp64(torch.sqrt, "XNNSquareRoot", "sqrt(x)", node_bounds.of_root),
    _through_fp64(torch.sigmoid, "XNNSigmoid", "1 / (1 + exp(-x))", node_bounds.of_sigmoid),
    _through_fp64(functional.gelu, "XNNGelu", "x * Phi(x), the exact GELU", node_bounds.of_gelu),
    _through_fp64(torch.tanh, "XNNTanh", "tanh(x)", node_bounds.of_tanh),
    _through_fp64(torch.exp, "XNNExp", "exp(x)", node_bounds.of_exponential),
    _through_fp64(torch.square, "XNNSquare", "x^2", node_bounds.of_square),
    _through_fp64(functional.hardswish, "XNNHardswish", "x min(max(x + 3, 0), 6) / 6", node_bounds.of_hardswish),
    _through_fp64(torch.sin, "XNNSin", "sin(x)", node_bounds.of_turn),
    _through_fp64(torch.cos, "XNNCos", "cos(x)", node_bounds.of_turn),
)


@_node("XNNSoftmax", bound=node_bounds.of_softmax)
def _softmax(node: Node, context: Context) -> Operand:
    """softmax over the last dimension, computed in fp64 and rounded once."""
    _only_real(node, context)
    x = context.tensor(node.inputs[0])
    return torch.softmax(x.double(), -1).to(torch.float32) if context.order is None else softmax(x, context.order)


@_node("XNNBatchMatrixMultiply", bound=node_bounds.of_matrix_product, roles=("frequencies",))
def _batch_matrix_multiply(node: Node, context: Context) -> Operand:
    """[..., M, K] @ [..., K, N] in fp32; sums in fp64, or in an order."""
    _only_real(node, context)
    if node.attributes["flags"]:
        raise UnknownOperationError(
            f"cannot evaluate {node.kind} with flags {node.attributes['flags']}, only 0 is supported"
        )
    return dot(context.tensor(node.inputs[0]), context.tensor(node.inputs[1]), context.order)


Move = Callable[[Node, list[Tensor]], Tensor]


def _mover(*names: str, moves: bool = True, roles: tuple[Role, ...] = ()) -> Callable[[Move], Move]:
    """Register nodes that compute nothing: the ranges of their operands must be the output's, and their bounds go through the same function."""

    def register(move: Move) -> Move:
        def evaluate(node: Node, context: Context) -> Operand:
            out = context.fact(node.output).quantization
            odd = [context.fact(id) for id in node.inputs if context.fact(id).quantization != out]
            if odd:
                raise UnknownOperationError(
                    f"cannot evaluate {node.kind} that changes the quantization, only one that keeps it is supported",
                    got=odd,
                    expected=out,
                )
            return move(node, [context.tensor(id) for id in node.inputs])

        def bound(node: Node, context: Context, bounds: Bounds, _result: Operand) -> Tensor:
            return move(node, [bound_of(context, bounds, id) for id in node.inputs]).abs()

        evaluate.__doc__ = move.__doc__
        _RECORDS.extend(NodeOperator(name, evaluate, bound, moves=moves, roles=roles) for name in names)
        return move

    return register


@_mover("XNNNegate", moves=False)
def _negate(_node: Node, given: list[Tensor]) -> Tensor:
    """-x in fp32."""
    if not given[0].is_floating_point():
        raise UnknownOperationError("cannot evaluate XNNNegate on quantized values, only fp32 is supported")
    return -given[0]


@_mover("XNNStaticTranspose")
def _transpose(node: Node, given: list[Tensor]) -> Tensor:
    """Dimensions in the order `perm`."""
    return given[0].permute(node.attributes["perm"]).contiguous()


@_mover("XNNClamp", moves=False)
def _clamp(_node: Node, given: list[Tensor]) -> Tensor:
    """x; the limits are the node's output clamp, which every node may have and which is applied behind all of them."""
    return given[0]


@_mover("XNNStaticReshape")
def _reshape(node: Node, given: list[Tensor]) -> Tensor:
    """The same elements in another shape; a size of 0 is what the others leave."""
    x, shape = given[0], [int(size) for size in node.attributes["new_shape"]]
    if shape.count(0) > 1:
        raise UnknownOperationError(f"cannot evaluate a reshape to {shape}, only one unknown size is supported")
    known = math.prod(size for size in shape if size)
    return x.reshape([size or x.numel() // max(known, 1) for size in shape])


@_mover("XNNStaticSlice")
def _slice(node: Node, given: list[Tensor]) -> Tensor:
    """From `offsets`, `sizes` elements of each dimension; a size of 0 is all that follow."""
    x = given[0]
    for dim, (offset, size) in enumerate(zip(node.attributes["offsets"], node.attributes["sizes"], strict=True)):
        x = x.narrow(dim, offset, size or x.shape[dim] - offset)
    return x.contiguous()


@_mover("XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNConcatenate5", roles=("addend",))
def _concatenate(node: Node, given: list[Tensor]) -> Tensor:
    """Inputs one after the other along `axis`."""
    axis = node.attributes["axis"]
    return torch.cat(given, dim=axis if axis < 1 << 31 else axis - (1 << 32))


NODES: Registry[NodeOperator] = Registry("XNNPACK node", "verifier/backends/xnnpack/nodes.py", _RECORDS)
