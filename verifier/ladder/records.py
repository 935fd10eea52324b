"""What a comparison instruction by instruction leaves: one record for each result, operand and conversion. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field

from verifier.core.compare import EQUAL_DB


@dataclass(frozen=True)
class Aligned:
    """An instruction's module, such as `text_decoder.layers.3.attention.wq`, and the block that it is judged with."""

    module: str
    block: str


@dataclass(frozen=True)
class NonFinite:
    """What a result holds that is no number: NaN if there is any, else infinity. `index` is the first of `count` such elements, which has
    `value`. `inherited` is whether an operand that was computed, or given by the caller, holds such a value too; `masks` whether a mask among the
    instruction's constants provides the infinity; `constant` whether one of its constants is not finite."""

    value: float
    index: tuple[int, ...]
    count: int
    inherited: bool = False
    masks: bool = False
    constant: bool = False

    @property
    def arises(self) -> bool:
        """Whether this instruction is the one that made it, of numbers and for no good reason."""
        return not (self.inherited or self.masks)


@dataclass(frozen=True)
class Compared:
    """One result of one instruction in one call.

    `operator` is the kernel or the nodes of a delegate, `call_text` the call with dtypes and sizes. `kind` says how it is judged: `bound`, in shares of the interpreter's error bound; `step`, in quantization steps;
    `equal`. `worst` is the largest local error in that unit, at `index`, where the runtime has `actual` and the interpreter
    `expected`; `share_off` is the share of elements that differ at all. `sqnr_db` is local, `propagated_db` end to end
    (None against the recipe's constants, which are compared locally only, and where the two cannot be compared).
    `reason` is what made a comparison impossible; `sqnr_db` is NaN then. `undefined` is whether nothing follows from the comparison: NaN stands at the
    same places on both sides, or among the operands. `non_finite` is what the runtime's result holds that is no number. `reordered` says that the
    result lies between the exact sums and those of a kernel's own order; `unexplained`, that some order of summation might give it, but none that is
    known (`verifier.ladder.stages`). `untipped`, of a result with the recipe's constants, says that with the file's own it keeps `layers.kernel.linear`:
    no activation in it was rounded the other way, so what differs comes from the constants.
    """

    call: int
    method: str
    instruction: int
    operator: str
    result: int
    kind: str
    elements: int
    call_text: str = ""
    worst: float = 0.0
    share_off: float = 0.0
    index: tuple[int, ...] = ()
    actual: float = 0.0
    expected: float = 0.0
    sqnr_db: float = EQUAL_DB
    propagated_db: float | None = None
    reason: str = ""
    undefined: bool = False
    non_finite: NonFinite | None = None
    sizes: tuple[int, ...] = ()
    reordered: bool = False
    unexplained: bool = False
    untipped: bool = False


def is_linear(record: Compared) -> bool:
    """Whether a result is that of a delegate of 4-bit linears, in fp32."""
    return "FullyConnected" in record.operator and record.kind == "bound"


@dataclass(frozen=True)
class ChangedOperand:
    """An operand that changed after it was written, by `producer` if an instruction of the call wrote it: `operand` is its place among the arguments."""

    call: int
    method: str
    instruction: int
    operand: int
    differing: int
    producer: int | None


@dataclass(frozen=True)
class RangeUse:
    """What one call hands to a delegate that converts it to static int8: the share of elements that the range cuts off. `node` is
    the converting node."""

    call: int
    method: str
    instruction: int
    node: int
    clipped: float


@dataclass(frozen=True)
class Replay:
    """Everything compared in some calls. `constants` repeats the instructions that use a constant, with the recipe's constant
    in its place. `computing` are the instructions that compute a tensor, by method, and `covered` those of them that were compared; a cache
    that was written is compared where it is read. `covered_in` is the same by call. `ranges` are the conversions to static int8."""

    compared: tuple[Compared, ...]
    constants: tuple[Compared, ...]
    changed_operands: tuple[ChangedOperand, ...]
    computing: dict[str, tuple[int, ...]]
    covered: dict[str, tuple[int, ...]]
    covered_in: dict[int, tuple[int, ...]] = field(default_factory=dict)
    ranges: tuple[RangeUse, ...] = ()
