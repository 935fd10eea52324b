"""What an operator is, in one record: its semantics, how far a correct kernel may be from them, and every fact that others need of it.

A record cannot be made without a bound. Records stand in the module of their family; `verifier.operators.registry` lists the families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from verifier.artifact.dtypes import PROGRAM
from verifier.artifact.plan import TensorValue
from verifier.core.errors import VerifierError
from verifier.core.types import EmbeddingBits
from verifier.operators.order import Order
from verifier.operators.rounding import Sums

Arguments = Sequence[Any]
"""Arguments of an operator, unboxed: tensors, numbers, lists. The last argument of most operators, the return value, is not among them."""
Declared = Sequence[TensorValue | None]
"""What the program declares of an operator's results; None for a number."""
Results = tuple[Any, ...]
"""Contents of an operator's results, in order."""
Evaluate = Callable[[Arguments, Declared], Results]
KernelBound = Callable[[Arguments, Results, Sums], list[Tensor | None]]
"""For every result an error bound, fp64 of its shape; None for integers."""
InOrder = Callable[[Arguments, Order], Results]

Role = Literal[
    "linear",
    "convolution",
    "bias",
    "norm weight",
    "norm bias",
    "epsilon",
    "factor",
    "mean",
    "std",
    "addend",
    "rope",
    "frequencies",
    "positions",
    "fill",
    "mask",
    "embedding",
    "embedding scales",
    "unknown",
]
"""The part that a constant plays for what uses it."""


class UnknownOperationError(VerifierError):
    """The program uses an operation whose semantics the interpreter does not have. Never skipped: it is an ERROR."""


class ProgramFaultError(Exception):
    """The program itself asks for something impossible, such as a cache row outside its cache."""


@dataclass(frozen=True)
class RowWrite:
    """How an operator writes rows into a KV-cache: places of the cache and of the rows among its arguments, and the cache's axis of positions."""

    cache: int
    rows: int
    axis: int


@dataclass(frozen=True)
class Operator:
    """An operator of the program. Places are those of its arguments.

    `bound` holds for operands that are exact. `in_order` evaluates the operator with its sums in a kernel's order, for operators that sum.
    `writes` is the argument that it writes in place. `views` says that its result is its first argument in another shape: no kernel runs, and
    nothing is traced. `heavy` work must be delegated: as a portable kernel it is right and many times too slow (ET#21859). `number` says that it
    computes numbers, not tensors. `rows` says how it writes a KV-cache. `attends` says that it is attention which reads the rows of a cache up to
    the position alone. `statistic` says that its result belongs to the module that uses it, as a mean belongs to its norm. `part` names it within a
    block of the model. `roles` are those of constants among its arguments, by place; the last one holds for all that follow. `table_bits` are those
    of an item of the table that it looks up. `source` is what its semantics were read from.
    """

    name: str
    evaluate: Evaluate
    bound: KernelBound
    in_order: InOrder | None = None
    writes: int | None = None
    views: bool = False
    heavy: bool = False
    number: bool = False
    rows: RowWrite | None = None
    attends: bool = False
    statistic: bool = False
    part: str = ""
    roles: tuple[Role, ...] = ()
    table_bits: EmbeddingBits | None = None
    source: str = ""

    @property
    def computes(self) -> bool:
        """Whether it computes a tensor: other operators leave no trace, and have no result to compare."""
        return not (self.number or self.views)


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """The name in the file."""


Record = TypeVar("Record", bound=Named)


class Registry(Generic[Record]):
    """Records by name."""

    def __init__(self, what: str, where: str, records: Iterable[Record]) -> None:
        """`what` the records are in the singular, and `where` they stand: for the message about a name without one."""
        self.what, self.where = what, where
        self.records: dict[str, Record] = {}
        for record in records:
            if record.name in self.records:
                raise ValueError(f"two records of the {what} {record.name}")
            self.records[record.name] = record

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def find(self, name: str) -> Record | None:
        """The record, if there is one."""
        return self.records.get(name)

    def known(self, names: Iterable[str]) -> list[Record]:
        """Records of those of some names that have one."""
        return [self.records[name] for name in names if name in self.records]

    def get(self, name: str, *, where: str) -> Record:
        """The record. Raises `UnknownOperationError` where there is none; `where` the program uses it."""
        if name not in self.records:
            raise UnknownOperationError(
                self.refusal(name), where=where, fix=f"add a record, with its source, in {self.where}"
            )
        return self.records[name]

    def refusal(self, name: str) -> str:
        """Why something of this name cannot be evaluated."""
        known = sorted(self.records)
        few = ", ".join(known) if len(known) < 5 else f"the {len(known)} in {self.where}"
        return f"cannot evaluate {self.what} {name}, only {few} {'is' if len(known) == 1 else 'are'} supported"


def dtype_of(name: str) -> torch.dtype:
    """PyTorch's dtype for ExecuTorch's name of it. Raises `UnknownOperationError`."""
    known = PROGRAM.get(name)
    if known is None or known.torch is None:
        supported = ", ".join(name for name, dtype in PROGRAM.items() if dtype.torch)
        raise UnknownOperationError(f"cannot evaluate a tensor of dtype {name}, only {supported} are supported")
    found: torch.dtype = getattr(torch, known.torch)
    return found
