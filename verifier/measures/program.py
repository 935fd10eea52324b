"""What is known of the program by its bytes alone, as plain data. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.artifact.program import Declarations, Scalar
from verifier.audit.records import Handovers, Lifetime, Overlap
from verifier.core.types import Missing


@dataclass(frozen=True)
class PlannedMemory:
    """The memory plan of one method: sizes of its arenas in bytes, the first of which is unused, and the tensors that lie in them.

    `outside` is the first tensor that ends outside its arena; `overlap` the first of `overlaps` pairs that share memory while both live.
    """

    arenas_bytes: tuple[int, ...]
    tensors: tuple[Lifetime, ...]
    outside: Lifetime | None
    overlaps: int
    overlap: Overlap | None


@dataclass(frozen=True)
class ScalarFactor:
    """What an instruction multiplies a tensor by; a text for what is no scalar. In sound attention it is the width of a head to the power of
    `exponent`."""

    instruction: int
    value: Scalar | None
    exponent: float = -0.25


@dataclass(frozen=True)
class ProgramFacts(Declarations):
    """A program without its instructions. `heavy` are operators that must be delegated, among those that it runs outside of delegates. `census`
    counts instructions and nodes by method and kind. `memory` is that of the methods that compute; `cache_positions` what the shortest KV-cache holds, if
    caches are found. Missing where a delegate is damaged."""

    file_bytes: int
    heavy: tuple[str, ...]
    census: dict[str, dict[str, int]] | Missing
    handovers: Handovers | Missing
    vision_factors: tuple[ScalarFactor, ...]
    memory: dict[str, PlannedMemory]
    cache_positions: int | None

    @property
    def planned_bytes(self) -> int:
        """What all methods that compute plan for tensors that change, in bytes."""
        return sum(sum(planned.arenas_bytes) for planned in self.memory.values())
