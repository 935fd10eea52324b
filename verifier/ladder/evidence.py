"""Everything known of a program layer by layer, as plain data. No heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from verifier.core.compare import Mismatch
from verifier.core.limits import Limit
from verifier.core.types import Missing
from verifier.families.conventions import DECODER, ENCODER
from verifier.ladder.limits import least_db
from verifier.ladder.records import Aligned, Replay

COMPARED = (ENCODER, DECODER)
"""Methods whose outputs are computed; `token_embedding` looks up."""


@dataclass(frozen=True)
class BlockError:
    """One block in one call: SQNR in dB of what it adds to the stream. `part` is `attention`, `feed_forward`, `output`, ...;
    `elements` counts the stream's numbers that enter it; `sample` names the image of the conversation. `limit_db` is what it must keep,
    where that is derived; nothing is enough where it is not. `rows_db` is the same token by token, from position `start` on, where a profile was taken of the decoder.
    `reason` is what made a comparison impossible: `sqnr_db` is NaN then, which no limit admits. `fed` is whether the stream that enters the block
    was made of numbers."""

    block: str
    part: str
    call: int
    sqnr_db: float
    elements: int
    sample: str = ""
    limit_db: float = math.inf
    rows_db: tuple[float, ...] = ()
    start: int = 0
    reason: str = ""
    fed: bool = True

    @property
    def limit(self) -> Limit:
        """What it must keep."""
        return least_db("layers.vision" if self.block.startswith(ENCODER) else "layers.graph", self.limit_db)

    @property
    def holds(self) -> bool:
        """Whether it keeps that."""
        return self.limit.admits(self.sqnr_db)


@dataclass(frozen=True)
class Counterpart:
    """The output of one call on the target and on this machine, on the very same inputs: SQNR in dB, or why the two cannot be compared."""

    method: str
    call: int
    sqnr_db: float | Mismatch


AT_HOME = Missing("the program ran on this machine", "unasked")


@dataclass(frozen=True)
class LayerEvidence:
    """Everything known layer by layer. `wrong_nodes` say of a delegate that the runtime computes
    wrongly which of its nodes is the first. `error_shares` are the decoder layers' parts in the error of the logits. `tokens` are
    the lengths of the decoder's calls, by number; `counterparts` the same calls on this machine. `blocks` are held against the quantized rung, `tower` are the
    layers of the encoder of images against fp32: what their quantization costs; `no_tower_rung` is why the encoder has no quantized rung, if so."""

    alignment: dict[tuple[str, int], Aligned]
    replay: Replay
    blocks: tuple[BlockError, ...] = ()
    profile: tuple[BlockError, ...] = ()
    wrong_nodes: dict[tuple[str, int], str] = field(default_factory=dict)
    error_shares: dict[str, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    counterparts: tuple[Counterpart, ...] | Missing = AT_HOME
    tower: tuple[BlockError, ...] = ()
    no_tower_rung: str = ""
