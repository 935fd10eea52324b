"""All operators that the interpreter evaluates, from the modules of their families."""

from __future__ import annotations

from verifier.operators import aten, llama, prims, quantized
from verifier.operators.operator import Operator, Registry

OPERATORS: Registry[Operator] = Registry(
    "operator",
    "verifier/operators/",
    (*aten.OPERATORS, *prims.OPERATORS, *llama.OPERATORS, *quantized.OPERATORS),
)


def is_heavy(name: str) -> bool:
    """Whether an operator, in any overload, is work that must be delegated. Operators that are only known by name count too."""
    heavy = {operator.name.partition(".")[0] for operator in OPERATORS if operator.heavy}
    return name.partition(".")[0] in heavy.union(aten.HEAVY_WITHOUT_SEMANTICS)
