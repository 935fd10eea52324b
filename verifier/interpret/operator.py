"""What an operator is: its semantics and how far a correct kernel may be from them. One cannot be had without the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from verifier.artifact.plan import TensorValue
from verifier.artifact.xnnpack import Node
from verifier.interpret.context import Bounds, Context, Operand
from verifier.interpret.order import Order
from verifier.interpret.rounding import Sums

Evaluate = Callable[[Sequence[Any], Sequence[TensorValue | None]], tuple[Any, ...]]
"""Arguments unboxed and declared outputs -> the outputs' contents in order."""
KernelBound = Callable[[Sequence[Any], Sequence[Any], Sums], list[Tensor | None]]
"""Arguments, results and the rule for sums -> for every result an error bound, fp64 of its shape; None for integers."""
InOrder = Callable[[Sequence[Any], Order], tuple[Any, ...]]


@dataclass(frozen=True)
class Operator:
    """An operator of the program. `bound` holds for operands that are exact. `in_order` evaluates it with its sums in a kernel's order,
    for operators that sum."""

    name: str
    evaluate: Evaluate
    bound: KernelBound
    in_order: InOrder | None = None


NodeBound = Callable[[Node, Context, Bounds, Operand], Tensor]
"""Of the fp32 result of a node, from the bounds of its operands: fp64 of the result's shape."""


@dataclass(frozen=True)
class NodeOperator:
    """A node of an XNNPACK delegate. `bound` is asked only where the result is not static int8."""

    kind: str
    evaluate: Callable[[Node, Context], Operand]
    bound: NodeBound
