"""How far a correct kernel may be from the interpreter, for each operator of the program, whose operands are exact.

What is not ruled by IEEE's rounding says so: functions have a row in the table of limits, and sums what the rule for them says (see
`verifier.interpret.rounding`). Results of integers have no bound: they must be equal. Sources: executorch/kernels/portable/cpu and
kernels/optimized/cpu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifier.interpret.errors import UnknownOperationError
from verifier.interpret.node_bounds import softmax_share
from verifier.interpret.rounding import UNIT, Sums, gamma, units


def _each(results: Sequence[Any], bound: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for result in results:
        real = isinstance(result, Tensor) and result.is_floating_point()
        if real and result.dtype not in (torch.float32, torch.float64):
            raise UnknownOperationError("a result that is rounded to half precision", got=result.dtype, expected="fp32")
        found.append(bound(result.double().abs()) if real else None)
    return found


def exact(_args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
    """Values are moved, picked or limited; nothing is rounded. A fill value or another dtype is rounded by IEEE's rule, to the same."""
    return [
        torch.zeros(r.shape, dtype=torch.float64) if isinstance(r, Tensor) and r.is_floating_point() else None
        for r in results
    ]


def once(_args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
    """One IEEE operation on two numbers of the result's dtype."""
    return _each(results, lambda out: UNIT * out)


def number_product(_args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
    """A number becomes fp32 before it is multiplied, or does not."""
    return _each(results, lambda out: gamma(2) * out)


def scaled_sum(args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
    """a + alpha b: the product is rounded by itself, or fused with the sum; a number as b becomes fp32 before, or does not."""
    b, alpha = args[1], args[2] if len(args) > 2 and args[2] is not None else 1
    second = b.double().abs() if isinstance(b, Tensor) else torch.tensor(abs(float(b)), dtype=torch.float64)
    plain = isinstance(b, Tensor) and alpha == 1
    return _each(
        results, lambda out: UNIT * out if plain else gamma(2) * (abs(float(alpha)) * second + out).expand(out.shape)
    )


def stepped(args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
    """start + i step."""
    start = abs(float(args[0])) if isinstance(args[0], int | float) else 0.0
    return _each(results, lambda out: gamma(2) * (start + 2 * out))


def function(name: str) -> Callable[[Sequence[Any], Sequence[Any], Sums], list[Tensor | None]]:
    """So many roundings of the result, by the row of the table."""

    def bound(_args: Sequence[Any], results: Sequence[Any], _sums: Sums) -> list[Tensor | None]:
        return _each(results, lambda out: units(name) * out)

    return bound


def put(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """Elements replaced; added up they would depend on the order."""
    if len(args) > 3 and args[3] is True:
        raise UnknownOperationError("aten::index_put.out that accumulates", expected="one that replaces")
    return exact(args, results, sums)


def product(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """[B, M, K] @ [B, K, N]."""
    a, b = (x.double().abs() for x in args[:2])
    return _each(results, lambda out: sums(a.shape[-1]) * (a @ b) + UNIT * out)


def softmax(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """Over a dimension, see `softmax_share`."""
    x, dim = args[0].double(), int(args[1])

    def bound(out: Tensor) -> Tensor:
        given, made = x.movedim(dim, -1), out.movedim(dim, -1)
        own = sums(given.shape[-1]) + units("aten::_softmax")
        return (made * softmax_share(given, made, torch.zeros(()).double(), own)).movedim(-1, dim)

    return _each(results, bound)


def mean(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """A sum and a division; all dimensions if none is given."""
    x, keep = args[0].double().abs(), bool(args[2])
    dims = list(args[1]) if args[1] else list(range(x.dim()))
    terms = math.prod(x.shape[dim] for dim in dims)
    return _each(results, lambda out: sums(terms + 1) * x.mean(dims, keepdim=keep) + UNIT * out)


def layer_norm(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """Mean; then variance, which a kernel may take as E[x^2] - mean^2 and lose what cancels; then the scaled difference.

    E[x^2] is off by a share g of itself, for g what a sum may be off by; the mean by g E|x|, and its square by 2 g E[x^2] and g^2 E[x^2],
    as (E|x|)^2 is E[x^2] at most.
    """
    x, shape, weight, bias, eps = args[0].double(), args[1], args[2], args[3], args[4]
    dims = list(range(-len(shape), 0))
    share = sums(math.prod(shape) + 3)
    mean = x.mean(dims, keepdim=True)
    mean_bound = share * x.abs().mean(dims, keepdim=True) + UNIT * mean.abs()
    variance = x.var(dims, unbiased=False, keepdim=True) + eps
    lost = (3 * share + share**2) * x.square().mean(dims, keepdim=True) / variance
    # 1 / sqrt(v (1 - lost)) less 1 / sqrt(v), as a share of it; then a root and a division
    spread = torch.where(lost < 1, (1 - lost).clamp(min=1e-300).rsqrt() - 1, torch.inf) + gamma(4)
    inverse = variance.rsqrt()
    scale = torch.ones(()).double() if weight is None else weight.double().abs()
    shift = torch.zeros(()).double() if bias is None else bias.double().abs()
    centred = (x - mean).abs()
    off = mean_bound + UNIT * (x.abs() + mean.abs())
    first = scale * inverse * ((1 + spread) * off + centred * (spread + gamma(2))) + gamma(2) * (
        shift + results[0].double().abs()
    )
    return [first, mean_bound + UNIT * mean.abs(), inverse * (spread + UNIT)]


BLOCK = 32
"""Keys that a kernel takes at a time, at the least; behind each block what was summed is scaled again."""
UNSEEN = -1e4
"""A mask below this gives a key no weight at all."""


def attention(args: Sequence[Any], results: Sequence[Any], sums: Sums) -> list[Tensor | None]:
    """Scores are sums over the width of a head; exp turns their errors, and the rounding of their difference to the largest, into shares of
    the weights, in sum and addend; the values are summed over the keys, block by block."""
    q, k, v, start, mask = args[0].double().abs(), args[1].double().abs(), args[2].double().abs(), int(args[3]), args[4]
    scale = abs(float(args[7])) if len(args) > 7 and args[7] is not None else q.shape[3] ** -0.5
    length = start + q.shape[1]
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    scores = (queries @ keys.transpose(-1, -2)).amax(-1, keepdim=True) * scale
    if mask is not None:
        seen = mask[..., :length].double()
        scores = scores + torch.where(seen > UNSEEN, seen.abs(), 0.0).amax(-1, keepdim=True)
    score_bound = sums(q.shape[3] + 4) * scores + 4 * UNIT * scores
    own = sums(length) + sums(length + 4 * math.ceil(length / BLOCK)) + units("llama::custom_sdpa")
    # any convex combination of the values is at most their largest magnitude
    largest = values.amax(-2, keepdim=True)
    bound = (torch.expm1(2 * score_bound + own) * largest).transpose(1, 2)
    return _each(results, lambda out: bound + UNIT * out)
