"""XNNPACK nodes in plain PyTorch: one function per node type, and the registry of them.

A value is an fp32 tensor, an int8 tensor whose scale and zero point stand in its `GraphValue`, or `QuantizedRows`. Layout
follows XNNPACK: activations NHWC, filters of a convolution [O, H, W, I], of a fully connected layer [N, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from verifier.artifact.nibbles import unpack_nibbles
from verifier.artifact.storage import Storage
from verifier.artifact.xnnpack import (
    Graph,
    GraphValue,
    Node,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    bfloat16_to_float32,
)
from verifier.interpret.arithmetic import (
    QuantizedRows,
    add_quantized,
    centred_rows,
    dequantize,
    dequantize_rows,
    multiply_groups,
    multiply_in_order,
    quantize,
    quantize_rows,
    requantize,
)
from verifier.interpret.errors import UnknownOperationError

Operand = Tensor | QuantizedRows
_NUMPY = {"fp32": np.float32, "qint8": np.int8, "qcint8": np.int8, "qint32": np.int32, "qcint32": np.int32}


@dataclass(frozen=True)
class Context:
    """What a node sees of its graph: facts of its values, and their contents so far by id. `offset` has 4-bit linears summed in their
    kernels' own order (`multiply_in_order`); without it sums are exact."""

    graph: Graph
    storage: Storage
    contents: dict[int, Operand]
    offset: int | None = None

    def fact(self, id: int | None) -> GraphValue:
        """The declared value."""
        if id is None:
            raise UnknownOperationError("an XNNPACK node lacks an operand that it needs")
        return self.graph.values[id]

    def tensor(self, id: int | None) -> Tensor:
        """Contents of a value that is not dynamically quantized; constants are read from the file."""
        value = self.fact(id)
        if value.constant is not None:
            return constant_weights(value, self.storage)
        content = self.contents[value.id]
        if isinstance(content, QuantizedRows):
            raise UnknownOperationError("a dynamically quantized operand where none is expected", got=value)
        return content

    def real(self, id: int | None) -> Tensor:
        """Contents as fp32, dequantized if need be."""
        quantization = self.fact(id).quantization
        if quantization is None:
            return self.tensor(id)
        return dequantize(
            self.tensor(id), scale=_static(quantization).scale, zero_point=_static(quantization).zero_point
        )


def _static(quantization: object) -> PerTensor:
    if not isinstance(quantization, PerTensor):
        raise UnknownOperationError(
            "an operand that is not quantized per tensor", got=quantization, expected="PerTensor"
        )
    return quantization


def constant_weights(value: GraphValue, storage: Storage) -> Tensor:
    """A constant as stored: fp32, int8, int32, or 4-bit weights unpacked to int8 in [-8, 7]."""
    assert value.constant is not None
    raw = storage.read(value.constant)[: value.size_bytes]
    if value.dtype in ("qbint4", "qcint4"):
        return torch.from_numpy(
            unpack_nibbles(raw, low_first=True).reshape(-1)[: math.prod(value.dims)].reshape(value.dims)
        )
    if value.dtype not in _NUMPY:
        raise UnknownOperationError("a constant of this dtype", got=value.dtype, expected=", ".join(_NUMPY))
    return torch.from_numpy(
        np.array(raw.view(_NUMPY[value.dtype])).reshape(-1)[: math.prod(value.dims)].reshape(value.dims)
    )


def channel_scales(value: GraphValue, storage: Storage) -> Tensor:
    """Scales of a weight as fp32: [1] per tensor, [N] per channel, [N, G] per group."""
    quantization = value.quantization
    if isinstance(quantization, PerTensor):
        return torch.tensor([quantization.scale], dtype=torch.float32)
    if isinstance(quantization, PerGroup):
        scales = bfloat16_to_float32(storage.read(quantization.scales))
        return torch.from_numpy(scales.reshape(value.dims[0], -1))
    if isinstance(quantization, PerChannel):
        if isinstance(quantization.scales, tuple):
            return torch.tensor(quantization.scales, dtype=torch.float32)
        return torch.from_numpy(np.array(storage.read(quantization.scales).view(np.float32)))
    raise UnknownOperationError("a weight without scales", got=value)


def has_groups(value: GraphValue) -> bool:
    """Whether a weight is of 4-bit groups along its input channels."""
    return value.dtype == "qbint4" and isinstance(value.quantization, PerGroup) and value.quantization.axis == 0


@lru_cache(maxsize=1)
def grouped_weights(value: GraphValue, storage: Storage) -> tuple[Tensor, Tensor]:
    """Integers of a weight with 4-bit groups in fp32 [N, K], and scales [N, G]. The last one is kept: it is asked for several times in
    a row."""
    return constant_weights(value, storage).to(torch.float32), channel_scales(value, storage)


def dequantized_filter(value: GraphValue, storage: Storage) -> Tensor:
    """Weights of a fully connected layer as real numbers, fp64 [N, K]."""
    weights = constant_weights(value, storage).to(torch.float64)
    if value.quantization is None:
        return weights
    scales = channel_scales(value, storage).to(torch.float64)
    if isinstance(value.quantization, PerGroup):
        return (weights.view(value.dims[0], -1, value.quantization.group_size) * scales[..., None]).view(value.dims)
    zero_point = value.quantization.zero_point if isinstance(value.quantization, PerTensor) else 0
    return (weights - zero_point) * scales[:, None]


NodeFunction = Callable[[Node, Context], Operand]
NODES: dict[str, NodeFunction] = {}


def _node(kind: str) -> Callable[[NodeFunction], NodeFunction]:
    def register(function: NodeFunction) -> NodeFunction:
        NODES[kind] = function
        return function

    return register


@_node("XNNConvert")
def _convert(node: Node, context: Context) -> Operand:
    """Between fp32 and int8: static (`quantize`, `dequantize`) or per row while running (`quantize_rows`)."""
    target = context.fact(node.output).quantization
    if isinstance(target, PerToken):
        if target.nonbatch_dims != 1:
            raise UnknownOperationError(
                "dynamic quantization over several dimensions", got=target.nonbatch_dims, expected=1
            )
        return quantize_rows(context.real(node.inputs[0]))
    if target is None:
        return context.real(node.inputs[0])
    if context.fact(node.inputs[0]).quantization is not None:
        raise UnknownOperationError("a conversion between two int8 ranges", got=context.fact(node.inputs[0]))
    return quantize(context.tensor(node.inputs[0]), scale=_static(target).scale, zero_point=_static(target).zero_point)


@_node("XNNFullyConnected")
def _fully_connected(node: Node, context: Context) -> Operand:
    """y = x W^T + b. Three kinds: per-row int8 times 4- or 8-bit weights to fp32 (qd8-f32-qb4w, qd8-f32-qc8w), static
    int8 throughout with int32 bias (qs8), and fp32. Sums in fp64."""
    x_id, w_id, b_id = node.inputs
    if node.attributes["flags"]:
        raise UnknownOperationError("flags of XNNFullyConnected", got=node.attributes["flags"], expected=0)
    x_fact, w_fact, out = context.fact(x_id), context.fact(w_id), context.fact(node.output)
    if isinstance(x_fact.quantization, PerToken):
        rows = context.contents[x_fact.id]
        assert isinstance(rows, QuantizedRows)
        if has_groups(w_fact) and context.offset is not None:
            weights, scales = grouped_weights(w_fact, context.storage)
            result = multiply_in_order(rows, weights, scales, offset=context.offset).double()
        elif has_groups(w_fact):
            weights, scales = grouped_weights(w_fact, context.storage)
            result = multiply_groups(centred_rows(rows), weights, scales) * rows.scale.double()
        else:
            result = dequantize_rows(rows) @ dequantized_filter(w_fact, context.storage).T
        return (result if b_id is None else result + context.tensor(b_id).double()).to(torch.float32)
    if x_fact.quantization is None:
        result = context.tensor(x_id).double() @ dequantized_filter(w_fact, context.storage).T
        return (result if b_id is None else result + context.tensor(b_id).double()).to(torch.float32)
    x_range, out_range = _static(x_fact.quantization), _static(out.quantization)
    weights = constant_weights(w_fact, context.storage).double()
    if isinstance(w_fact.quantization, PerTensor):
        weights = weights - w_fact.quantization.zero_point
    sums = (context.tensor(x_id).double() - x_range.zero_point) @ weights.T
    if b_id is not None:
        sums = sums + context.tensor(b_id).double()
    return requantize(sums, scale=_ratio(x_range, w_fact, out_range, context), zero_point=out_range.zero_point)


def _ratio(x_range: PerTensor, weight: GraphValue, out_range: PerTensor, context: Context) -> Tensor:
    scale = torch.tensor(x_range.scale, dtype=torch.float32) * channel_scales(weight, context.storage)
    return scale / torch.tensor(out_range.scale, dtype=torch.float32)


@_node("XNNConv2d")
def _conv2d(node: Node, context: Context) -> Operand:
    """Convolution in NHWC, static int8 with int32 bias or fp32, one group. Padding adds real zeros."""
    a = node.attributes
    if a["groups"] != 1 or a["dilation_height"] != 1 or a["dilation_width"] != 1 or a["flags"]:
        raise UnknownOperationError("a grouped or dilated convolution", got=a)
    x_id, w_id, b_id = node.inputs
    x_fact, w_fact, out = context.fact(x_id), context.fact(w_id), context.fact(node.output)
    weights = constant_weights(w_fact, context.storage).double().permute(0, 3, 1, 2)
    x = context.tensor(x_id).double().permute(0, 3, 1, 2)
    if x_fact.quantization is not None:
        x = x - _static(x_fact.quantization).zero_point
        weights = weights - (w_fact.quantization.zero_point if isinstance(w_fact.quantization, PerTensor) else 0)
    x = functional.pad(x, (a["padding_left"], a["padding_right"], a["padding_top"], a["padding_bottom"]))
    sums = functional.conv2d(x, weights, stride=(a["subsampling_height"], a["subsampling_width"])).permute(0, 2, 3, 1)
    if b_id is not None:
        sums = sums + context.tensor(b_id).double()
    if x_fact.quantization is None:
        return sums.to(torch.float32)
    out_range = _static(out.quantization)
    scale = _ratio(_static(x_fact.quantization), w_fact, out_range, context)
    return requantize(sums, scale=scale, zero_point=out_range.zero_point)


@_node("XNNAdd")
def _add(node: Node, context: Context) -> Operand:
    """a + b with broadcasting; in int8 by fixed point (`add_quantized`)."""
    if context.fact(node.output).quantization is None:
        return context.tensor(node.inputs[0]) + context.tensor(node.inputs[1])
    a, b, out = (_static(context.fact(id).quantization) for id in (*node.inputs, node.output))
    return add_quantized(
        context.tensor(node.inputs[0]),
        context.tensor(node.inputs[1]),
        a_ratio=a.scale / out.scale,
        b_ratio=b.scale / out.scale,
        zero_points=(a.zero_point, b.zero_point, out.zero_point),
    )


@_node("XNNMultiply")
def _multiply(node: Node, context: Context) -> Operand:
    """a * b with broadcasting; in int8 the product of both minus their zero points, requantized in fp32."""
    if context.fact(node.output).quantization is None:
        return context.tensor(node.inputs[0]) * context.tensor(node.inputs[1])
    a, b, out = (_static(context.fact(id).quantization) for id in (*node.inputs, node.output))
    product = (context.tensor(node.inputs[0]).double() - a.zero_point) * (
        context.tensor(node.inputs[1]).double() - b.zero_point
    )
    scale = torch.tensor(a.scale, dtype=torch.float32) * torch.tensor(b.scale, dtype=torch.float32)
    return requantize(product, scale=scale / torch.tensor(out.scale, dtype=torch.float32), zero_point=out.zero_point)


def _only_real(node: Node, context: Context) -> None:
    if any(context.fact(id).quantization is not None for id in (*node.inputs, node.output)):
        raise UnknownOperationError(f"{node.kind} on quantized values", got=[context.fact(id) for id in node.inputs])


@_node("XNNSubtract")
def _subtract(node: Node, context: Context) -> Operand:
    """a - b in fp32, with broadcasting."""
    _only_real(node, context)
    return context.tensor(node.inputs[0]) - context.tensor(node.inputs[1])


@_node("XNNDiv")
def _divide(node: Node, context: Context) -> Operand:
    """a / b in fp32, with broadcasting."""
    _only_real(node, context)
    return context.tensor(node.inputs[0]) / context.tensor(node.inputs[1])


@_node("XNNNegate")
def _negate(node: Node, context: Context) -> Operand:
    """-x in fp32."""
    _only_real(node, context)
    return -context.tensor(node.inputs[0])


def _through_fp64(function: Callable[[Tensor], Tensor], kind: str, what: str) -> None:
    def apply(node: Node, context: Context) -> Operand:
        _only_real(node, context)
        return function(context.tensor(node.inputs[0]).double()).to(torch.float32)

    apply.__doc__ = f"{what}, computed in fp64 and rounded once; XNNPACK's polynomial is a few ulps away."
    NODES[kind] = apply


_through_fp64(torch.rsqrt, "XNNReciprocalSquareRoot", "1 / sqrt(x)")
_through_fp64(torch.sqrt, "XNNSquareRoot", "sqrt(x)")
_through_fp64(torch.sigmoid, "XNNSigmoid", "1 / (1 + exp(-x))")
_through_fp64(functional.gelu, "XNNGelu", "x * Phi(x), the exact GELU")
_through_fp64(torch.tanh, "XNNTanh", "tanh(x)")
_through_fp64(torch.exp, "XNNExp", "exp(x)")
_through_fp64(torch.square, "XNNSquare", "x^2")
_through_fp64(lambda x: torch.softmax(x, -1), "XNNSoftmax", "softmax over the last dimension")


@_node("XNNBatchMatrixMultiply")
def _batch_matrix_multiply(node: Node, context: Context) -> Operand:
    """[..., M, K] @ [..., K, N] in fp32; sums in fp64."""
    _only_real(node, context)
    if node.attributes["flags"]:
        raise UnknownOperationError("flags of XNNBatchMatrixMultiply", got=node.attributes["flags"], expected=0)
    return (context.tensor(node.inputs[0]).double() @ context.tensor(node.inputs[1]).double()).to(torch.float32)


def _moved(node: Node, context: Context) -> Tensor:
    """The input of a node that only moves values: its range must be the output's."""
    before, after = context.fact(node.inputs[0]).quantization, context.fact(node.output).quantization
    if before != after:
        raise UnknownOperationError(f"{node.kind} that changes the quantization", got=before, expected=after)
    return context.tensor(node.inputs[0])


@_node("XNNStaticTranspose")
def _transpose(node: Node, context: Context) -> Operand:
    """Dimensions in the order `perm`."""
    return _moved(node, context).permute(node.attributes["perm"]).contiguous()


@_node("XNNClamp")
def _clamp(node: Node, context: Context) -> Operand:
    """x; the limits are the node's output clamp, which every node may have and which is applied behind all of them."""
    return _moved(node, context)


@_node("XNNStaticReshape")
def _reshape(node: Node, context: Context) -> Operand:
    """The same elements in another shape; a size of 0 is what the others leave."""
    x = _moved(node, context)
    shape = [int(size) for size in node.attributes["new_shape"]]
    if shape.count(0) > 1:
        raise UnknownOperationError("a reshape with several unknown sizes", got=shape)
    known = math.prod(size for size in shape if size)
    return x.reshape([size or x.numel() // max(known, 1) for size in shape])


@_node("XNNStaticSlice")
def _slice(node: Node, context: Context) -> Operand:
    """From `offsets`, `sizes` elements of each dimension; a size of 0 is all that follow."""
    x = _moved(node, context)
    for dim, (offset, size) in enumerate(zip(node.attributes["offsets"], node.attributes["sizes"], strict=True)):
        x = x.narrow(dim, offset, size or x.shape[dim] - offset)
    return x.contiguous()


def _concatenate(node: Node, context: Context) -> Operand:
    """Inputs one after the other along `axis`; int8 inputs must share the output's range."""
    out = context.fact(node.output).quantization
    odd = [context.fact(id) for id in node.inputs if context.fact(id).quantization != out]
    if odd:
        raise UnknownOperationError("a concatenation of different ranges", got=odd, expected=out)
    axis = node.attributes["axis"]
    return torch.cat([context.tensor(id) for id in node.inputs], dim=axis if axis < 1 << 31 else axis - (1 << 32))


NODES |= {f"XNNConcatenate{count}": _concatenate for count in range(2, 6)}
