"""What the audit of a file leaves, as plain data: of its constants, its memory plan, its caches, its int8 tensors between delegates. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifier.backends.quantization import PerTensor

INTEGERS = ("linear", "convolution", "embedding")
"""Roles of weights that become integers by a scheme."""


@dataclass(frozen=True)
class Audited:
    """The result for one constant. `wrong` counts elements that differ from the recipe's, `index` is the worst of them.

    `sqnr_db` and `worst_steps` compare the stored weights, dequantized, with the checkpoint (steps are of the element's
    own scale). `group` is the group with the largest error. `explained` is whether the recipe gives such a constant at all.
    `reason` is empty if all is as the recipe gives it. `owner` is the module whose instruction uses the constant; if none does, the block of
    the latest weight before it, or the method, with the constant's role.

    `likeness` is its correlation with its parameter, where the tensor is not all of one value. Of integers in groups: the `quantizer` that chose
    their scales. Of integers that differ: the `scheme` in words that makes most of them, the share that is `equal` to
    what that scheme makes, and the SQNR that the scheme has, `scheme_db`, where they differ; `not_nearest` counts integers that are neither the nearest to
    their weight at the stored scale, nor cut off at the end of their range. `noted` is what a reader should know although nothing is wrong.
    """

    name: str
    key: str | None
    method: str
    instruction: int
    role: str
    elements: int
    wrong: int = 0
    index: tuple[int, ...] | None = None
    sqnr_db: float | None = None
    worst_steps: float | None = None
    group: tuple[int, ...] | None = None
    explained: bool = True
    reason: str = ""
    owner: str = ""
    likeness: float | None = None
    quantizer: str = ""
    scheme: str = ""
    equal: float | None = None
    scheme_db: float | None = None
    not_nearest: int | None = None
    noted: str = ""


@dataclass(frozen=True)
class Misplaced:
    """A constant that stands where another belongs."""

    method: str
    instruction: int
    found: str
    expected: str


@dataclass(frozen=True)
class Digest:
    """A short hash of the contents of a constant, its scales included, and how many bytes these are."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class AuditRecords:
    """The audit of the constants: `held` of them are tensors of the checkpoint, each with a digest under the name of its parameter.

    `misplaced`: the first constant of each method that is out of order. `unused`: tensors of the checkpoint that LLaVA-1.5 does not use.
    `dead_bytes`: constants of the file that no instruction reads, such as the mask that custom SDPA made superfluous.
    """

    constants: tuple[Audited, ...]
    held: int
    misplaced: tuple[Misplaced, ...]
    unused: tuple[str, ...]
    dead_bytes: int
    digests: dict[str, Digest]


@dataclass(frozen=True)
class Cache:
    """One cache of the decoder: number of its EValue, layer, `axis` of positions in its `sizes`."""

    value: int
    layer: int
    kind: Literal["k", "v"]
    axis: int
    sizes: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Misread:
    """An EValue that instruction `writer` makes with one quantization and `reader` takes with another."""

    method: str
    value: int
    writer: int
    reader: int
    written: PerTensor
    read: PerTensor


@dataclass(frozen=True)
class Handovers:
    """How many int8 tensors go from delegate to delegate, and those that are misread."""

    compared: int
    misread: tuple[Misread, ...]


@dataclass(frozen=True)
class Lifetime:
    """An EValue in the plan: its arena, its bytes [begin, end), and the instructions [first, last] between which it lives."""

    value: int
    arena: int
    begin: int
    end: int
    first: int
    last: int
    permanent: bool

    def conflicts(self, other: Lifetime) -> bool:
        """Whether both live at once and share a byte."""
        shared = self.arena == other.arena and self.begin < other.end and other.begin < self.end
        return shared and self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Overlap:
    """Two EValues that share memory while both live."""

    method: str
    first: Lifetime
    second: Lifetime
