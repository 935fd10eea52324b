"""How far a correct kernel may be from the interpreter, for each operator of the program, whose operands are exact.

What is not ruled by IEEE's rounding says so: functions have a row in the table of limits, and sums what the rule for them says (see
`verifier.operators.rounding`). Results of integers have no bound: they must be equal. Sources: executorch/kernels/portable/cpu and
kernels/optimized/cpu.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.core.limits import UNIT
from verifier.operators.operator import Arguments, KernelBound, Results, UnknownOperationError
from verifier.operators.rounding import Sums, gamma, units


def each(results: Results, bound: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """The bound of each result by its magnitudes; None for what is no floating-point tensor. Raises `UnknownOperationError` for half precision."""
    found: list[Tensor | None] = []
    for result in results:
        real = isinstance(result, Tensor) and result.is_floating_point()
        if real and result.dtype not in (torch.float32, torch.float64):
            raise UnknownOperationError(f"cannot bound a result of {result.dtype}, only fp32 and fp64 are supported")
        found.append(bound(result.double().abs()) if real else None)
    return found


def exact(_args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
    """Values are moved, picked or limited; nothing is rounded. A fill value or another dtype is rounded by IEEE's rule, to the same."""
    return [
        torch.zeros(r.shape, dtype=torch.float64) if isinstance(r, Tensor) and r.is_floating_point() else None
        for r in results
    ]


def once(_args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
    """One IEEE operation on two numbers of the result's dtype."""
    return each(results, lambda out: UNIT * out)


def number_product(_args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
    """A number becomes fp32 before it is multiplied, or does not."""
    return each(results, lambda out: gamma(2) * out)


def scaled_sum(args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
    """a + alpha b: the product is rounded by itself, or fused with the sum; a number as b becomes fp32 before, or does not."""
    b, alpha = args[1], args[2] if len(args) > 2 and args[2] is not None else 1
    second = b.double().abs() if isinstance(b, Tensor) else torch.tensor(abs(float(b)), dtype=torch.float64)
    plain = isinstance(b, Tensor) and alpha == 1
    return each(
        results, lambda out: UNIT * out if plain else gamma(2) * (abs(float(alpha)) * second + out).expand(out.shape)
    )


def stepped(args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
    """start + i step."""
    start = abs(float(args[0])) if isinstance(args[0], int | float) else 0.0
    return each(results, lambda out: gamma(2) * (start + 2 * out))


def function(name: str) -> KernelBound:
    """So many roundings of the result, by the row of the table."""

    def bound(_args: Arguments, results: Results, _sums: Sums) -> list[Tensor | None]:
        return each(results, lambda out: units(name) * out)

    return bound


def put(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
    """Elements replaced; added up they would depend on the order."""
    if len(args) > 3 and args[3] is True:
        raise UnknownOperationError(
            "cannot evaluate aten::index_put.out that accumulates, only one that replaces is supported"
        )
    return exact(args, results, sums)


def product(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
    """[B, M, K] @ [B, K, N]."""
    a, b = (x.double().abs() for x in args[:2])
    return each(results, lambda out: sums(a.shape[-1]) * (a @ b) + UNIT * out)


def softmax_share(x: Tensor, out: Tensor, passed: Tensor, own: float) -> Tensor:
    """What softmax over the last dimension may be off by, as a share of the result: `own` for its functions, its sum and its division.

    exp turns an absolute error of x - max into a relative one: the difference is rounded, and so is the ln 2 by which its range is
    reduced. All addends' errors come back in the sum, weighted by their parts in it.
    """
    # a masked addend is -inf whatever is added to it, and its part is exactly 0: no error comes from it (inf * 0 would be NaN)
    passed = torch.where(torch.isneginf(x), 0.0, passed)
    lower = torch.where(out > 0, x.amax(-1, keepdim=True) - x, 0.0)
    difference = 2 * UNIT * lower + passed
    # a sum of positive numbers is off by no more than the average of its addends' errors, weighted by them
    together = difference + passed.amax(-1, keepdim=True) + 2 * UNIT * (out * lower).sum(-1, keepdim=True)
    return torch.expm1(together + own)


def softmax(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
    """Over a dimension, see `softmax_share`."""
    x, dim = args[0].double(), int(args[1])

    def bound(out: Tensor) -> Tensor:
        given, made = x.movedim(dim, -1), out.movedim(dim, -1)
        own = sums(given.shape[-1]) + units("aten::_softmax")
        return (made * softmax_share(given, made, torch.zeros(()).double(), own)).movedim(-1, dim)

    return each(results, bound)


def mean(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
    """A sum and a division; all dimensions if none is given."""
    x, keep = args[0].double().abs(), bool(args[2])
    dims = list(args[1]) if args[1] else list(range(x.dim()))
    terms = math.prod(x.shape[dim] for dim in dims)
    return each(results, lambda out: sums(terms + 1) * x.mean(dims, keepdim=keep) + UNIT * out)


def layer_norm(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
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
