"""What was found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from verifier.core.limits import limit

SHARE = limit("layers.kernel")
Finding = Literal["same", "rounding", "beyond", "answers", "not judged", "not run"]


@dataclass(frozen=True)
class FirstChange:
    """The first instruction of a method whose result has other bits on the same operands.

    `share_off` is the share of its elements that differ, `sqnr_db` one result against the other. `base_share` and `share` are what each runtime
    uses of the limit of `layers.kernel` against the program's bytes; None where the interpreter does not know the instruction (`unknown`).
    """

    method: str
    call: int
    instruction: int
    module: str
    call_text: str
    share_off: float
    sqnr_db: float
    base_share: float | None = None
    share: float | None = None
    unknown: str = ""


@dataclass(frozen=True)
class MethodSkew:
    """A method on two runtimes. Of `calls` in the conversations, `differing` gave other bits; with the base's own inputs `alone` calls do, and
    `first` is the instruction that begins it; `problem` is why it could not be looked for. `sqnr_db` is the worst of all calls."""

    method: str
    calls: int
    differing: int
    sqnr_db: float
    alone: int = 0
    first: FirstChange | None = None
    problem: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether it is known what differs: an instruction that the interpreter knows, or nothing of this method's own."""
        return not self.problem and (not self.alone if self.first is None else not self.first.unknown)


@dataclass(frozen=True)
class RuntimeSkew:
    """A runtime against the base. `tokens` are favoured otherwise in `other_tokens` of them, on the same conversation; `other_answers` are pictures for
    which the free answer differs. `reason` is why it did not run."""

    runtime: str
    versions: dict[str, str] = field(default_factory=dict)
    methods: tuple[MethodSkew, ...] = ()
    tokens: int = 0
    other_tokens: int = 0
    answers: int = 0
    other_answers: tuple[str, ...] = ()
    reason: str = ""

    @property
    def finding(self) -> Finding:
        """In one word. `beyond`: an instruction uses more than its limit, on this runtime or the base. `answers`: rounding alone, and yet another
        answer."""
        if self.reason:
            return "not run"
        changes = [method.first for method in self.methods if method.first is not None]
        shares = [share for change in changes for share in (change.share, change.base_share)]
        if any(share is not None and not SHARE.admits(share) for share in shares):
            return "beyond"
        if not all(method.is_judged for method in self.methods):
            return "not judged"
        if self.other_answers:
            return "answers"
        return "rounding" if any(method.differing for method in self.methods) else "same"


@dataclass(frozen=True)
class Skew:
    """A file on all runtimes. `base` is the first one that ran."""

    pte: str
    pte_sha256: str
    checkpoint: str
    base: str
    base_versions: dict[str, str]
    samples: tuple[str, ...]
    runtimes: tuple[RuntimeSkew, ...]
