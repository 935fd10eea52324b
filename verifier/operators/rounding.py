"""How much a rounding costs, and how the roundings of a sum add up.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, lemma 3.1 and sections 3.1, 4.2 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.core.limits import UNIT, limit


def gamma(roundings: float) -> float:
    """The relative error of a result that went through so many roundings: n u / (1 - n u), as each works on what the others left."""
    return roundings * UNIT / (1 - roundings * UNIT)


Sums = Callable[[int], float]
"""What a sum of K products may be off by, as a share of the sum of their magnitudes."""


def any_order(terms: int) -> float:
    """True of every order of summation: no product goes through more than its own rounding and K - 1 additions. With fused multiply-add,
    and for a sum without products, there is one less."""
    return gamma(terms)


def likely(terms: int) -> float:
    """Where the roundings are independent: they add up like sqrt(K), and 4 is almost seven standard deviations of their uniform
    distribution. No bound: many small addends of one sign are rounded to the same side, and leave it. What lies beyond is looked at again
    (`verifier.ladder.stages`)."""
    deviations = limit("rounding.screen").value
    return min(any_order(terms), (deviations * math.sqrt(terms) + deviations) * UNIT)


def units(name: str) -> float:
    """Roundings that a function's result may be off by, from the table of limits: `units("XNNSigmoid")` is the row `rounding.XNNSigmoid`."""
    return limit(f"rounding.{name}").value * UNIT


def rounded(out: Tensor, passed: Tensor, share: float = UNIT) -> Tensor:
    """The bound of an operation that passes on the errors `passed` of its operands, and whose own result is off by `share`.

    `out` are the magnitudes of the interpreter's results, rounded too: with the very same operands a correctly rounded operation gives the
    same, with other operands both roundings count.
    """
    own = torch.where(passed > 0, UNIT * (out + passed), 0.0)  # not a product: of an infinite result it would be NaN
    return passed + share * (out + passed) + own
