"""Greedy answers of the program by our own driver to prompts of any form, in one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from verifier.families.driver import Caller, Script, favoured, ids_array
from verifier.runner.protocol import Array, OutputOf


@dataclass(frozen=True)
class Given:
    """Tokens of an answer that was given already: fed one by one, as they were when they were generated."""

    ids: tuple[int, ...]


Stretch = tuple[int, ...] | Array | Given
"""Text ids, a picture uint8 [3, h, w], or an earlier answer."""


def length_of(stretches: Sequence[Stretch], patches: int) -> int:
    """Positions that a conversation takes."""
    return sum(
        len(one.ids) if isinstance(one, Given) else len(one) if isinstance(one, tuple) else patches for one in stretches
    )


@dataclass
class OwnAnswers:
    """Conversations in the making; each picture goes through the encoder once. so many `positions` are there."""

    caller: Caller
    patches: int
    positions: int
    script: Script = field(init=False)
    logits: list[tuple[int, ...]] = field(default_factory=list)
    _encoded: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.script = Script(self.caller)

    def ask(self, stretches: Sequence[Stretch], tokens: int) -> int:
        """Append a conversation from position 0, answered freely with so many tokens or up to the end of the cache; its number."""
        position, last = 0, -1
        for number, stretch in enumerate(stretches):
            keep = number == len(stretches) - 1
            if isinstance(stretch, Given):
                for token in stretch.ids:
                    last = self._step(ids_array([token]), position, keep=keep)
                    position += 1
            elif isinstance(stretch, tuple):
                last = self.script.read(stretch, position, keep=keep)
                position += len(stretch)
            else:
                last = self.script.decode(OutputOf(self._vision(stretch)), position, self.patches, keep=keep)
                position += self.patches
        logits = [last]
        while len(logits) < tokens and position < self.positions:
            logits.append(self._step(favoured(logits[-1]), position))
            position += 1
        self.logits.append(tuple(logits))
        return len(self.logits) - 1

    def _step(self, ids: object, position: int, *, keep: bool = True) -> int:
        return self.script.decode(OutputOf(self.script.embed(ids)), position, 1, keep=keep)  # type: ignore[arg-type]

    def _vision(self, picture: Array) -> int:
        """The call of the encoder; a picture is known by its array, which the script keeps."""
        if id(picture) not in self._encoded:
            self._encoded[id(picture)] = self.script.encode(picture, keep=False)
        return self._encoded[id(picture)]

    def answers(self, outputs: Mapping[int, Array], ends: Sequence[int]) -> list[tuple[int, ...]]:
        """The tokens of every answer, by number; see `favoured_ids`."""
        return [favoured_ids([outputs.get(call) for call in calls], ends) for calls in self.logits]


def favoured_ids(rows: Sequence[Array | None], ends: Sequence[int]) -> tuple[int, ...]:
    """The favoured tokens of rows of logits up to and with the first of `ends`; none if a row before it is missing or not finite."""
    ids: list[int] = []
    for row in rows:
        if row is None or not np.isfinite(row).all():
            return ()
        ids.append(int(np.asarray(row).reshape(-1).argmax()))
        if ids[-1] in ends:
            break
    return tuple(ids)
