"""Operators on numbers, sizes and memory: ExecuTorch's own primitives, and what ATen has of that kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verifier.operators.bounds import exact
from verifier.operators.operator import Arguments, Declared, Operator, Results, dtype_of

_SOURCE = "executorch/kernels/prim_ops/register_prim_ops.cpp"


def _sym_size(args: Arguments, _outputs: Declared) -> Results:
    """The size of one dimension, as a number."""
    return (int(args[0].shape[args[1]]),)


def _local_scalar(args: Arguments, _outputs: Declared) -> Results:
    """The one element of a tensor, as a number."""
    return (args[0].item(),)


def _view(args: Arguments, _outputs: Declared) -> Results:
    """The same elements in another shape, sharing memory; a size of -1 is what the others leave."""
    return (args[0].reshape([int(size) for size in args[1]]),)


def _to_dim_order(args: Arguments, outputs: Declared) -> Results:
    """A copy in the output's dtype; the order of dimensions in memory does not change what it holds."""
    assert outputs[0] is not None
    return (args[0].to(dtype_of(outputs[0].dtype), copy=True),)


def _prim(symbol: str, function: Callable[[Any, Any], Any]) -> Operator:
    def apply(args: Arguments, _outputs: Declared) -> Results:
        return (function(args[0], args[1]),)

    apply.__doc__ = f"{symbol} of two numbers."
    return Operator(f"executorch_prim::{symbol}.Scalar", apply, exact, number=True, source=_SOURCE)


_ON_NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "eq": lambda a, b: a == b,
    "gt": lambda a, b: a > b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "le": lambda a, b: a <= b,
}
_DIM_ORDER = "executorch/kernels/portable/cpu/op__to_dim_order_copy.cpp, op__clone_dim_order.cpp"

OPERATORS = (
    *(_prim(symbol, function) for symbol, function in _ON_NUMBERS.items()),
    Operator("aten::sym_size.int", _sym_size, exact, number=True, source=_SOURCE),
    Operator("aten::_local_scalar_dense", _local_scalar, exact, number=True, source=_SOURCE),
    Operator(
        "executorch_prim::et_view.default", _view, exact, views=True, source="executorch/kernels/prim_ops/et_view.cpp"
    ),
    Operator("dim_order_ops::_to_dim_order_copy.out", _to_dim_order, exact, source=_DIM_ORDER),
    Operator("dim_order_ops::_clone_dim_order.out", _to_dim_order, exact, source=_DIM_ORDER),
    Operator("aten::_to_copy.out", _to_dim_order, exact, source="executorch/kernels/portable/cpu/op_to_copy.cpp"),
)
