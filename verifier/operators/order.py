"""Orders in which kernels add up products in fp32, evaluated step for step.

A result that is further from the exact sum than independent roundings leave it is looked at again in these orders. The order that
errs most is the longest chain, one product after the other; kernels with several sums at a time, or with blocks, lie between it and the
exact sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """`lanes` sums of every so-many-th product, added up in pairs; `fused` rounds a product and its addition once. `offset` is what the
    kernel adds to int8 activations before it multiplies them with 4-bit weights, and `pieces` how many sums it keeps of those (`multiply_in_order`)."""

    name: str
    fused: bool
    lanes: int
    offset: int
    pieces: int = 1


ORDERS = (
    Order("one after the other, fused", fused=True, lanes=1, offset=128),
    Order("one after the other, rounded twice", fused=False, lanes=1, offset=0),
    Order("in 16 lanes, fused", fused=True, lanes=16, offset=0, pieces=4),
)
"""XNNPACK's f32 GEMM and IGEMM keep one sum for each output, along K, fused where the CPU can (AVX2, AVX-512, NEON) and not where it
cannot (SSE2, wasm); dot products of other libraries fill a vector. 4-bit linears: AVX-512 VNNI's instruction wants unsigned
bytes and adds 128, others add nothing; AVX2's keeps four sums of each output."""


def dot(a: Tensor, b: Tensor, order: Order | None = None) -> Tensor:
    """a fp32 [..., M, K] times b fp32 [..., K, N] as fp32 [..., M, N]: rounded once from fp64, or where `order` rounds."""
    if order is None:
        return (a.double() @ b.double()).to(torch.float32)
    sums = [_chain(a[..., lane :: order.lanes], b[..., lane :: order.lanes, :], order) for lane in range(order.lanes)]
    while len(sums) > 1:
        half = (len(sums) + 1) // 2
        sums = [x + y for x, y in zip(sums[:half], sums[half:], strict=False)] + sums[len(sums) - half : half]
    return sums[0]


def _chain(a: Tensor, b: Tensor, order: Order) -> Tensor:
    # in fp64 a product of two fp32 numbers is exact, and rounding its sum once more is all but a fused multiply-add
    total = torch.zeros_like(a[..., :1] * b[..., :1, :])
    for k in range(a.shape[-1]):
        x, y = a[..., k : k + 1], b[..., k : k + 1, :]
        total = (total.double() + x.double() * y.double()).to(torch.float32) if order.fused else total + x * y
    return total


def total(x: Tensor, order: Order) -> Tensor:
    """The sum of fp32 [..., K] over the last dimension, which stays as one element."""
    return dot(x[..., None, :], torch.ones(x.shape[-1], 1), order)[..., 0]


def softmax(x: Tensor, order: Order) -> Tensor:
    """Softmax over the last dimension whose sum runs in an order; the function itself is rounded once."""
    raised = (x - x.amax(-1, keepdim=True)).double().exp().to(torch.float32)
    return raised / total(raised, order)
