"""What a node of a delegate sees: its graph, the contents of values so far, and constants as the file stores them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verifier.artifact.dtypes import XNNPACK
from verifier.artifact.nibbles import unpack_nibbles
from verifier.artifact.storage import Bytes, Storage
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor
from verifier.backends.xnnpack.arithmetic import QuantizedRows, dequantize
from verifier.operators.operator import UnknownOperationError
from verifier.operators.order import Order
from verifier.operators.rounding import Sums, likely

Operand = Tensor | QuantizedRows
Bounds = dict[int, Tensor]
"""Error bounds of fp32 values by id."""
_READ = ", ".join(name for name, dtype in XNNPACK.items() if dtype.numpy)


@dataclass(frozen=True)
class Context:
    """What a node sees of its graph: facts of its values, and their contents so far by id. `order` has products summed as a kernel sums
    them; without it sums are exact. `sums` is the rule for what a sum may be off by."""

    graph: Graph
    storage: Storage
    contents: dict[int, Operand]
    order: Order | None = None
    sums: Sums = likely

    def fact(self, id: int | None) -> GraphValue:
        """The declared value."""
        if id is None:
            raise UnknownOperationError(
                "cannot evaluate an XNNPACK node that lacks an operand, only optional ones may be absent"
            )
        return self.graph.values[id]

    def tensor(self, id: int | None) -> Tensor:
        """Contents of a value that is not dynamically quantized; constants are read from the file."""
        value = self.fact(id)
        if value.constant is not None:
            return constant_weights(value, self.storage)
        content = self.contents[value.id]
        if isinstance(content, QuantizedRows):
            raise UnknownOperationError(
                "cannot evaluate a node on dynamically quantized rows, only XNNFullyConnected is supported", got=value
            )
        return content

    def real(self, id: int | None) -> Tensor:
        """Contents as fp32, dequantized if need be."""
        quantization = self.fact(id).quantization
        if quantization is None:
            return self.tensor(id)
        return dequantize(
            self.tensor(id), scale=static_range(quantization).scale, zero_point=static_range(quantization).zero_point
        )


def static_range(quantization: object) -> PerTensor:
    """The scale and zero point of a value of static int8. Raises `UnknownOperationError`."""
    if not isinstance(quantization, PerTensor):
        raise UnknownOperationError(
            "cannot evaluate an int8 operand that is not quantized per tensor, only PerTensor is supported",
            got=quantization,
        )
    return quantization


def constant_weights(value: GraphValue, storage: Storage) -> Tensor:
    """A constant as stored: fp32, int8, int32, or 4-bit weights unpacked to int8 in [-8, 7]."""
    assert value.constant is not None
    raw = storage.read(value.constant)[: value.size_bytes]
    if value.is_packed:
        return torch.from_numpy(
            unpack_nibbles(raw, low_first=True).reshape(-1)[: math.prod(value.dims)].reshape(value.dims)
        )
    stored = XNNPACK[value.dtype].numpy
    if stored is None:
        raise UnknownOperationError(f"cannot evaluate a constant of dtype {value.dtype}, only {_READ} are supported")
    return torch.from_numpy(np.array(raw.view(stored)).reshape(-1)[: math.prod(value.dims)].reshape(value.dims))


def _bfloat16_to_float32(raw: Bytes) -> NDArray[np.float32]:
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def channel_scales(value: GraphValue, storage: Storage) -> Tensor:
    """Scales of a weight as fp32: [1] per tensor, [N] per channel, [N, G] per group."""
    quantization = value.quantization
    if isinstance(quantization, PerTensor):
        return torch.tensor([quantization.scale], dtype=torch.float32)
    if isinstance(quantization, PerGroup):
        scales = _bfloat16_to_float32(storage.read(quantization.scales))
        return torch.from_numpy(scales.reshape(value.dims[0], -1))
    if isinstance(quantization, PerChannel):
        if isinstance(quantization.scales, tuple):
            return torch.tensor(quantization.scales, dtype=torch.float32)
        return torch.from_numpy(np.array(storage.read(quantization.scales).view(np.float32)))
    raise UnknownOperationError(
        "cannot evaluate a weight without scales, only per tensor, channel or group is supported", got=value
    )


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


TRANSPOSED = 1
"""XNN_FLAG_TRANSPOSE_WEIGHTS, a flag of XNNFullyConnected: its weight is [K, N]."""


def linear_weights(node: Node, context: Context) -> Tensor:
    """Weights of a fully connected layer as real numbers, fp64 [N, K]: a constant, or what another node computed."""
    fact = context.fact(node.inputs[1])
    weights = dequantized_filter(fact, context.storage) if fact.constant else context.real(fact.id).double()
    return weights.T if node.attributes["flags"] == TRANSPOSED else weights


@lru_cache(maxsize=1)
def offset_magnitudes(value: GraphValue, storage: Storage) -> Tensor:
    """What each output of a weight with 4-bit groups makes of activations that are all one, as the sum of its groups' magnitudes: fp64 [N]."""
    integers, scales = grouped_weights(value, storage)
    return (integers.view(*scales.shape, -1).sum(-1).abs().double() * scales.double()).sum(-1)
