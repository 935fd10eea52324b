"""What a backend is, and what it makes of a delegate's payload: a graph of nodes and values, or the reason why nobody can read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from verifier.artifact.dtypes import XNNPACK
from verifier.artifact.storage import Span, Storage
from verifier.backends.quantization import PerGroup, PerTensor, Quantization
from verifier.operators.operator import Role
from verifier.operators.order import Order
from verifier.operators.rounding import Sums


@dataclass(frozen=True)
class GraphValue:
    """One value. `dtype` without its `xnn_datatype_`; `constant` are its bytes in the file; `external` its number among
    the arguments of the call, None for one that stays inside."""

    id: int
    dtype: str
    dims: tuple[int, ...]
    quantization: Quantization
    constant: Span | None
    external: int | None

    @property
    def size_bytes(self) -> int:
        """Bytes when stored densely; two 4-bit items share a byte."""
        return math.ceil(math.prod(self.dims) * XNNPACK[self.dtype].item_bits / 8)

    @property
    def is_packed(self) -> bool:
        """Whether its items are 4-bit integers, two a byte."""
        return XNNPACK[self.dtype].item_bits == 4

    @property
    def has_groups(self) -> bool:
        """Whether it is a weight of 4-bit groups along its input channels."""
        return self.dtype == "qbint4" and isinstance(self.quantization, PerGroup) and self.quantization.axis == 0


@dataclass(frozen=True)
class Node:
    """One node: its type such as `XNNFullyConnected`, ids of its inputs in order (None where optional and absent), its
    output, other attributes by name, and the output clamp if it has one."""

    index: int
    kind: str
    inputs: tuple[int | None, ...]
    output: int
    attributes: dict[str, Any]
    clamp: tuple[float, float] | None

    @property
    def short(self) -> str:
        """Its type without XNNPACK's prefix, for messages."""
        return self.kind.removeprefix("XNN")

    @property
    def clamps(self) -> bool:
        """Whether its clamp can change anything."""
        return self.clamp not in (None, (-math.inf, math.inf))


@dataclass(frozen=True)
class Graph:
    """A decoded delegate. `inputs` and `outputs` are ids of external values, in the order of the call's arguments."""

    nodes: tuple[Node, ...]
    values: dict[int, GraphValue]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Opaque:
    """A delegate that nobody can read, and why. Checks that must look into it are errors with this reason, never failures."""

    reason: str


@dataclass(frozen=True)
class Use:
    """A constant, or an operand from outside the delegate, as a node uses it. `id` is that of the value; `input_scale` is the scale of the
    activation that meets it; a `transposed` weight is [K, N]."""

    node: int
    id: int
    role: Role
    input_scale: float | None
    transposed: bool = False


@dataclass(frozen=True)
class Conversion:
    """A node that converts the delegate's input `id` to static int8."""

    node: int
    id: int
    target: PerTensor


NodeObserver = Callable[[int, object, Tensor | None], None]
"""Sees the result of every node by its number, and its error bound if there is one."""


class Backend(Protocol):
    """Semantics of the delegates of one backend. Methods raise `UnknownOperationError` for a node that they have none for."""

    @property
    def name(self) -> str:
        """The backend's id in the file."""

    def read(self, payload: Span, storage: Storage, *, where: str) -> Graph | Opaque:
        """Decode a payload; constants are not read. Raises `ArtifactError` for a damaged one."""

    def run(
        self,
        graph: Graph,
        storage: Storage,
        inputs: Sequence[Tensor],
        *,
        observe: NodeObserver | None,
        bounds: dict[int, Tensor] | None,
        order: Order | None,
        sums: Sums,
    ) -> tuple[Tensor, ...]:
        """Outputs for the inputs of one call, both in the order of its arguments. `bounds`, if given, is filled with the error bound of every
        fp32 value by id. `order` has products summed as a kernel sums them, and `sums` is the rule for what a sum may be off by."""

    def constants(self, graph: Graph, outside: Collection[int]) -> Iterator[Use]:
        """Uses of constants by nodes, in order, each value once; `outside` are ids of inputs that are constants of the program."""

    def numbers(self, graph: Graph, storage: Storage) -> list[Tensor]:
        """The floating-point constants of a delegate, scales included."""

    def step(self, graph: Graph, id: int) -> float | None:
        """The quantization step of an output: its own, or that of the int8 value which it is converted from; None if it has none."""

    def conversions(self, graph: Graph) -> list[Conversion]:
        """Nodes that convert an input to static int8."""

    def is_linear(self, node: Node) -> bool:
        """Whether a node multiplies with a matrix of weights."""

    def cut(self, payload: Span, storage: Storage, graph: Graph, node: int) -> tuple[bytes, dict[str, Span]]:
        """The payload up to and with a node, whose value it returns, and the named data that it uses. Raises `VerifierError`."""
