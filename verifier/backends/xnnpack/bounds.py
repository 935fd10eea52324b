"""How far a correct kernel may be from the interpreter, for each node of a delegate: a running error bound, element by element.

Every node passes on the errors of its operands and adds its own: one rounding for IEEE operations, a stated number of roundings for
XNNPACK's approximations, and for a sum of K products what `Context.sums` says: `any_order` is true of every order, `likely` is the screen
in front of it. Nothing here is fitted to a model. Values of int8 have no bound; they are judged in steps, and what a delegate computes
in fp32 from int8 values of its own is bounded as if those were the interpreter's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.backends.backend import GraphValue, Node
from verifier.backends.xnnpack.arithmetic import QMAX, QMIN, TIE_WIDTH, QuantizedRows, dequantize_rows, multiply_groups
from verifier.backends.xnnpack.context import (
    Bounds,
    Context,
    Operand,
    dequantized_filter,
    grouped_weights,
    linear_weights,
    offset_magnitudes,
)
from verifier.core.limits import UNIT
from verifier.operators.bounds import softmax_share
from verifier.operators.operator import UnknownOperationError
from verifier.operators.rounding import gamma, rounded, units

ROUNDED_UP = 1 + 2.0**-12
"""A bound that is itself summed in fp32 stays one: sums of a group are right to 2^-12 for any group of 4096 channels and less."""
LARGEST_OFFSET = 128
"""What a 4-bit kernel adds to int8 activations at most (`verifier.operators.order`)."""
INTEGER_ROUNDINGS = 6
"""A linear whose integers are summed exactly for a whole channel: the sum becomes fp32, is multiplied by the scale of the row (itself
rounded twice) and by that of the channel, and the bias is added."""
GELU_SLOPE = 1.13
"""The largest derivative of GELU is 1.1289, at sqrt(2)."""


def bound_of(context: Context, bounds: Bounds, id: int | None) -> Tensor:
    """The bound of an operand: zero for constants and for what the delegate was handed."""
    if id in bounds:
        return bounds[id]
    content = context.contents.get(id if id is not None else -1)
    shape = content.shape if isinstance(content, Tensor) else context.fact(id).dims
    return torch.zeros(shape, dtype=torch.float64)


def _tensor(result: Operand) -> Tensor:
    if isinstance(result, QuantizedRows):
        raise UnknownOperationError(
            "cannot bound a node that gives dynamically quantized rows, only XNNConvert is supported"
        )
    return result.double().abs()


def of_convert(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """int8 to fp32 is one product; rows that are quantized while running may tip where their operand is not exact."""
    passed = bound_of(context, bounds, node.inputs[0])
    if not isinstance(result, QuantizedRows):
        return rounded(result.double().abs(), passed)
    return _of_rows(context.real(node.inputs[0]).double(), result, passed)


def _of_rows(x: Tensor, rows: QuantizedRows, passed: Tensor) -> Tensor:
    """Of the real values of dynamically quantized rows, beyond the ties that rows of exact numbers have: zero for those.

    Errors of at most E in a row move both ends of its range by E, and so its scale s by the share 2 E / (255 s); x / s, of at most 255,
    moves by 3 E / s. What comes within that of a tie may go the other way, by a step; so may the zero point, which shows where integers are
    cut off at the ends.
    """
    most = passed.amax(-1, keepdim=True)
    if not bool(most.any()):
        return torch.zeros_like(passed)
    step = rows.scale.double()
    share = 2 * most / (255 * step)
    moved = 3 * most / step * (1 + 2 * share) + TIE_WIDTH
    scaled = x / step
    tips = 0.5 - (scaled - scaled.round()).abs() < moved
    ends = (rows.integers == QMIN) | (rows.integers == QMAX)
    return (1 + share) * step * (tips | ends) + share * dequantize_rows(rows).abs() + (moved > 0.5) * moved * step


def of_linear(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """x W^T + b: by the kind of the kernel."""
    x_id, w_id, b_id = node.inputs
    fact, out, passed = context.fact(w_id), _tensor(result), bound_of(context, bounds, x_id)
    bias = torch.zeros(()).double() if b_id is None else context.tensor(b_id).double().abs()
    rows = context.contents.get(x_id if x_id is not None else -1)
    if isinstance(rows, QuantizedRows):
        own = _of_groups if fact.has_groups else _of_channels
        return own(rows, fact, context, passed, out, bias)
    weights = linear_weights(node, context).abs().T
    x = context.real(x_id).double().abs() + passed
    return context.sums(weights.shape[0] + 2) * (x @ weights + bias) + passed @ weights + UNIT * out


def _of_groups(  # noqa: PLR0917
    rows: QuantizedRows, fact: GraphValue, context: Context, passed: Tensor, out: Tensor, bias: Tensor
) -> Tensor:
    """4-bit groups: integers are summed exactly in a group, whatever the order. What is rounded are the share of the zero point, summed over
    the groups when weights are packed, the sum over the groups, the scale of the row, and the bias."""
    integers, scales = grouped_weights(fact, context.storage)
    own = context.sums(2 * scales.shape[1] + 8)
    step = rows.scale.double()
    allowed = (own * (rows.integers.double().abs() + LARGEST_OFFSET) + rows.tied) * step + passed
    groups = ROUNDED_UP * multiply_groups(allowed.to(torch.float32), integers.abs(), scales)
    zeros = (rows.zero_point.double().abs() + LARGEST_OFFSET) * step * offset_magnitudes(fact, context.storage)
    return groups + own * (zeros + bias) + UNIT * out


def _of_channels(  # noqa: PLR0917
    rows: QuantizedRows, fact: GraphValue, context: Context, passed: Tensor, out: Tensor, bias: Tensor
) -> Tensor:
    """One scale for a channel: integers are summed exactly in int32, zero point included."""
    weights = dequantized_filter(fact, context.storage).abs().T
    tipped = (rows.tied * rows.scale.double() + passed) @ weights
    return tipped + gamma(INTEGER_ROUNDINGS) * (out + tipped + 2 * bias) + UNIT * out


def of_convolution(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """A sum over the window and all channels, and the bias."""
    x_id, w_id, b_id = node.inputs
    weights, passed = context.tensor(w_id).double().abs(), bound_of(context, bounds, x_id)
    bias = torch.zeros(()).double() if b_id is None else context.tensor(b_id).double().abs()
    x = context.tensor(x_id).double().abs() + passed
    terms = weights[0].numel() + 1
    sums = convolve(x, weights, node) + bias
    return context.sums(terms) * sums + convolve(passed, weights, node) + UNIT * _tensor(result)


def windows(x: Tensor, weights: Tensor, node: Node) -> Tensor:
    """What each output of a convolution sums over: NHWC x -> [N, H', W', K], K in the order of filters [O, H, W, I]."""
    a = node.attributes
    padded = torch.nn.functional.pad(
        x, (0, 0, a["padding_left"], a["padding_right"], a["padding_top"], a["padding_bottom"])
    )
    cut = padded.unfold(1, weights.shape[1], a["subsampling_height"]).unfold(
        2, weights.shape[2], a["subsampling_width"]
    )
    return cut.permute(0, 1, 2, 4, 5, 3).flatten(3)


def convolve(x: Tensor, weights: Tensor, node: Node) -> Tensor:
    """NHWC x with filters [O, H, W, I], in the dtype of both. Padding adds zeros."""
    return windows(x, weights, node) @ weights.flatten(1).T


def of_sum(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """a + b or a - b."""
    a, b = (bound_of(context, bounds, id) for id in node.inputs)
    return rounded(_tensor(result), a + b)


def of_product(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """a * b."""
    a, b = (context.tensor(id).double().abs() for id in node.inputs)
    a_bound, b_bound = (bound_of(context, bounds, id) for id in node.inputs)
    return rounded(_tensor(result), a * b_bound + b * a_bound + a_bound * b_bound)


def of_quotient(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """a / b; without limit where b may be zero."""
    b, out = context.tensor(node.inputs[1]).double().abs(), _tensor(result)
    a_bound, b_bound = (bound_of(context, bounds, id) for id in node.inputs)
    least = b - b_bound
    return rounded(out, torch.where(least > 0, (a_bound + out * b_bound) / least.clamp(min=1e-300), torch.inf))


def of_matrix_product(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """[..., M, K] @ [..., K, N]."""
    a, b = (context.tensor(id).double().abs() for id in node.inputs)
    a_bound, b_bound = (bound_of(context, bounds, id) for id in node.inputs)
    passed = a @ b_bound + a_bound @ (b + b_bound)
    return passed + context.sums(a.shape[-1]) * ((a + a_bound) @ (b + b_bound)) + UNIT * _tensor(result)


def of_reciprocal_root(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """1 / sqrt(x); without limit where x may be zero."""
    x, out = context.tensor(node.inputs[0]).double(), _tensor(result)
    least = x - bound_of(context, bounds, node.inputs[0])
    steepest = torch.where(least > 0, least.clamp(min=1e-300).rsqrt() - x.clamp(min=1e-300).rsqrt(), torch.inf)
    return rounded(out, torch.where(least == x, 0.0, steepest), units(node.kind))


def of_root(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """sqrt(x) is steeper towards zero."""
    x, out = context.tensor(node.inputs[0]).double().clamp(min=0), _tensor(result)
    least = (x - bound_of(context, bounds, node.inputs[0])).clamp(min=0)
    return rounded(out, x.sqrt() - least.sqrt(), units(node.kind))


def of_exponential(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """exp(x + d) = exp(x) exp(d). XNNPACK raises 2 to x log2(e): the product is rounded, and so is the constant."""
    x, passed = context.tensor(node.inputs[0]).double().abs(), bound_of(context, bounds, node.inputs[0])
    out = _tensor(result)
    return out * torch.expm1(passed + 2 * UNIT * (x + passed) + units(node.kind)) + UNIT * out


def of_sigmoid(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """1 / (1 + exp(-x)) grows by a factor of exp(d) at most."""
    out = _tensor(result)
    return rounded(out, out * torch.expm1(bound_of(context, bounds, node.inputs[0])), units(node.kind))


def of_gelu(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """x (1 + erf(x / sqrt(2))) / 2: where x is negative the sum cancels, and what its rounding leaves is a share of x, not of the result."""
    x, passed = context.tensor(node.inputs[0]).double().abs(), bound_of(context, bounds, node.inputs[0])
    return GELU_SLOPE * passed + units(node.kind) * (x + passed) + 2 * UNIT * _tensor(result)


def of_hardswish(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """x min(max(x + 3, 0), 6) / 6 is no steeper than 1.5. The sum x + 3 is rounded, which is a share of 3 where it cancels."""
    x, passed = context.tensor(node.inputs[0]).double().abs(), bound_of(context, bounds, node.inputs[0])
    return 1.5 * passed + units(node.kind) * (x + passed) + 2 * UNIT * _tensor(result)


def of_tanh(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """No steeper than 1."""
    return rounded(_tensor(result), bound_of(context, bounds, node.inputs[0]), units(node.kind))


def of_turn(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """sin(x) and cos(x) are no steeper than 1. The angle is reduced by whole turns: a turn is 0.47 roundings of itself off when it is rounded to
    fp32, and the multiple of it is rounded where a kernel does not fuse the two steps."""
    x, passed = context.tensor(node.inputs[0]).double().abs(), bound_of(context, bounds, node.inputs[0])
    return rounded(_tensor(result), passed) + units(node.kind) + 1.5 * UNIT * (x + passed)


def of_square(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """(x + d)^2."""
    x, passed = context.tensor(node.inputs[0]).double().abs(), bound_of(context, bounds, node.inputs[0])
    return rounded(_tensor(result), (2 * x + passed) * passed, units(node.kind))


def of_softmax(node: Node, context: Context, bounds: Bounds, result: Operand) -> Tensor:
    """Over the last dimension, see `softmax_share`."""
    x, passed = context.tensor(node.inputs[0]).double(), bound_of(context, bounds, node.inputs[0])
    out = _tensor(result)
    return out * softmax_share(x, out, passed, context.sums(x.shape[-1]) + units(node.kind))
