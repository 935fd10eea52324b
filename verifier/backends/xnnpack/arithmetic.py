"""Quantized arithmetic as XNNPACK does it, step for step in fp32 where its rounding depends on that.

Sums are exact: integers of 8 bits times 4 or 8 bits are summed in fp64, which holds them without rounding. What is left to
differ from the kernels is the order of a few fp32 roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

QMIN, QMAX = -128, 127
TIE_WIDTH = 4 * 255 * 2.0**-24
"""Steps. Before it is rounded, an activation of up to 255 steps carries the roundings of range, inverse and product, and
where a kernel fuses the addition of the zero point one more: NEON's kernels tip a few activations of llava_tiny
another way than AVX-512's, which are repeated here exactly."""


@dataclass(frozen=True)
class QuantizedRows:
    """A dynamically quantized activation: integers int8 [..., K], and per row `scale` fp32 [..., 1] and `zero_point` [..., 1].
    `tied` [..., K] marks integers that another order of the same roundings may put one higher or lower."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    tied: Tensor


def quantize_rows(x: Tensor, *, tie_width: float = TIE_WIDTH, flip_ties: bool = False) -> QuantizedRows:
    """fp32 [..., K] -> asymmetric int8 per row, from its minimum and maximum with 0 included.

    `tie_width` is how close to a tie, in steps, a number counts as tied; `flip_ties` rounds what is tied the other way.

    Source: `xnn_f32_qd8_asymmetric_quantization_params` in XNNPACK's src/xnnpack/quantization.h. The zero point is taken
    from whichever end of the range leaves less error, then rounded to even.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    high = x.amax(-1, keepdim=True).clamp(min=0.0)
    spread = high - low
    inverse = torch.where(spread == 0, torch.ones_like(spread), torch.tensor(255.0) / spread)
    low, high = low * inverse, high * inverse
    from_low = (QMIN + low) + (QMAX + high) > 0
    zero_point = torch.where(from_low, QMIN - low, QMAX - high).clamp(QMIN, QMAX).round()
    scaled = x * inverse
    nearest = scaled.round()
    rest = scaled - nearest
    tied = 0.5 - rest.abs() < tie_width
    if flip_ties:
        nearest += tied * rest.sign()
    integers = (nearest + zero_point).clamp(QMIN, QMAX).to(torch.int8)
    return QuantizedRows(integers, 1.0 / inverse, zero_point.to(torch.int32), tied)


def dequantize_rows(rows: QuantizedRows) -> Tensor:
    """Back to real values, in fp64."""
    return (rows.integers.to(torch.float64) - rows.zero_point) * rows.scale.to(torch.float64)


EXACT_GROUP = 2**24 // (255 * 8)
"""Channels whose products of 8-bit and 4-bit integers fp32 sums without rounding, in whatever order."""


def centred_rows(rows: QuantizedRows) -> Tensor:
    """Integers less their zero point, in fp32: [-255, 255]."""
    return rows.integers.to(torch.float32) - rows.zero_point.to(torch.float32)


def multiply_groups(x: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """x fp32 [..., K] times 4-bit integers, fp32 [N, K], with `scales` fp32 [N, G] of groups along K: fp64 [..., N].

    A group is summed in fp32, or in fp64 if it has more than `EXACT_GROUP` channels, and the groups in fp64: exact to fp64 where x
    holds integers of 8 bits.
    """
    sums = _group_sums(x, weights, scales)
    total = torch.zeros(sums.shape[1:], dtype=torch.float64)
    for part, scale in zip(sums, scales.T, strict=True):
        total.addcmul_(part.double(), scale.double())
    return total.view(*x.shape[:-1], scales.shape[0])


def _group_sums(x: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """x [..., K] times integers [N, K], group by group: [G, rows, N], in fp32 where that is exact."""
    count, size = scales.shape[1], weights.shape[1] // scales.shape[1]
    dtype = torch.float32 if size <= EXACT_GROUP else torch.float64
    grouped = weights.to(dtype).view(scales.shape[0], count, size).permute(1, 2, 0)
    return torch.bmm(x.to(dtype).reshape(-1, count, size).transpose(0, 1), grouped)


def multiply_in_order(rows: QuantizedRows, weights: Tensor, scales: Tensor, *, offset: int, pieces: int = 1) -> Tensor:
    """What `multiply_groups` makes of centred rows, times their scales, rounded where XNNPACK's 4-bit kernels round: fp32 [..., N].

    First the zero point's share, then group by group with fused multiply-add. A row with few large activations has a zero point far from
    the rest: its share is many times the result, and an fp32 rounding of it is what is left. With `offset` the kernel adds that to every activation first:
    128 where its instruction wants unsigned bytes. With `pieces` it keeps so many sums, of two neighbouring channels in turn; the zero point's
    share is in the first, and they are added up in pairs at the end.

    Source: `xnn_qd8_f32_qb4w_gemm_minmax_ukernel_*` and the packing of their weights; the same bits as those for AVX-512 VNNI (offset 128) and for AVX2
    (4 pieces) (tests/runners/test_linear_order.py).
    """
    count = scales.shape[1]
    shares = torch.zeros(len(scales))
    for ones, scale in zip(weights.view(len(scales), count, -1).sum(-1).T, scales.T, strict=True):
        shares -= ones * scale
    given = rows.integers.to(torch.float32) + offset
    start = (rows.zero_point + offset).to(torch.float32) * shares
    sums = [start.reshape(-1, len(scales)), *([torch.zeros_like(start).reshape(-1, len(scales))] * (pieces - 1))]
    owner = torch.arange(weights.shape[1]) // 2 % pieces
    for place in range(pieces):
        own = weights if pieces == 1 else torch.where(owner == place, weights, 0)
        for part, scale in zip(_group_sums(given, own, scales), scales.T, strict=True):
            sums[place] = sums[place].double().addcmul_(part.double(), scale.double()).to(torch.float32)
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0].view(start.shape) * rows.scale


def quantize(x: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """fp32 -> int8 with a scale known beforehand: clamp(round_to_even(x * (1 / scale)) + zero_point)."""
    inverse = torch.tensor(1.0) / torch.tensor(scale, dtype=torch.float32)
    return ((x * inverse).round() + zero_point).clamp(QMIN, QMAX).to(torch.int8)


def dequantize(q: Tensor, *, scale: float, zero_point: int) -> Tensor:
    """int8 -> fp32: (q - zero_point) * scale."""
    return (q.to(torch.float32) - zero_point) * torch.tensor(scale, dtype=torch.float32)


def requantize(accumulator: Tensor, *, scale: Tensor, zero_point: int) -> Tensor:
    """Exact integer sums (fp64) -> int8: clamp(round_to_even(fp32(sum) * scale) + zero_point), all in fp32.

    Source: the `fp32` requantization of XNNPACK's qs8 kernels.
    """
    scaled = accumulator.to(torch.float32) * scale
    return (scaled.round() + zero_point).clamp(QMIN, QMAX).to(torch.int8)


def add_quantized(a: Tensor, b: Tensor, *, a_ratio: float, b_ratio: float, zero_points: tuple[int, int, int]) -> Tensor:
    """int8 + int8 -> int8 in fixed point. A ratio is the operand's scale over the output's; zero points of a, b, output.

    Source: `xnn_init_qs8_add_minmax_scalar_params`: both ratios become integers with the same shift, so that the larger
    has 21 bits; half is added and the sum shifted, which rounds ties up.
    """
    a32, b32 = (torch.tensor(ratio, dtype=torch.float32) for ratio in (a_ratio, b_ratio))
    larger = max(abs(float(a32)), abs(float(b32)))
    shift = 20 - (int(torch.frexp(torch.tensor(larger)).exponent) - 1)
    a_factor, b_factor = (int(torch.round(ratio.double() * 2.0**shift)) for ratio in (a32, b32))
    total = (a.to(torch.int64) - zero_points[0]) * a_factor + (b.to(torch.int64) - zero_points[1]) * b_factor
    shifted = (total + (1 << (shift - 1))) >> shift
    return (shifted + zero_points[2]).clamp(QMIN, QMAX).to(torch.int8)
