"""Decoder calls to be run: chunks of tokens at positions, on one or several instances of a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from verifier.families.conventions import pieces
from verifier.families.driver import Script
from verifier.measures.probes import Pair
from verifier.runner.protocol import Array, Part, Result

PROMPT_TOKENS = 48
"""A prompt of three row tiles of 16; probes continue after it."""


@dataclass
class PairedCalls:
    """A script of decoder calls, with `pairs` of calls whose logits must be equal. `parts` are the caches that a rewired program gives besides its logits."""

    script: Script
    pairs: list[Pair] = field(default_factory=list)

    def feed(
        self,
        embeddings: Array,
        start: int = 0,
        *,
        keep: bool = True,
        may_fail: bool = False,
        instance: int = 0,
        parts: tuple[Part, ...] = (),
        caches: tuple[Array, ...] = (),
    ) -> int:
        """One chunk [S, D] at a position; the number of its call. `caches` are set before it by a rewired program. A chunk of more tokens than
        the program takes in one call goes in in pieces, and the last one counts, unless it `may_fail`: that asks for this very call."""
        call, most = -1, len(embeddings) if may_fail else self.script.caller.decoded
        for size in pieces(len(embeddings), most):
            piece, embeddings, last = embeddings[:size], embeddings[size:], len(embeddings) == size
            further = parts if last else ()
            call = self.script.decode(
                piece[None],
                start,
                size,
                keep=keep and last,
                may_fail=may_fail,
                instance=instance,
                further=further,
                caches=caches,
            )
            start += size
        return call

    def chunks(self, embeddings: Array, sizes: Iterable[int], *, keep: bool = True) -> list[int]:
        """Chunks of the given sizes one after the other from position 0; the numbers of their calls."""
        calls, position = [], 0
        for size in sizes:
            calls.append(self.feed(embeddings[position : position + size], position, keep=keep))
            position += size
        return calls

    def same(self, case: str, actual: int, expected: int, position: int) -> None:
        """Note that two calls must give the same logits."""
        self.pairs.append(Pair(case, actual, expected, position))


def random_tokens(table: Array, count: int, *, seed: int) -> Array:
    """Embeddings [count, D] of random token ids: ordinary inputs of the decoder, none of them zero."""
    used = np.flatnonzero(np.abs(table).max(1) > 0)
    ids = np.random.default_rng(seed).choice(used, count)
    out: Array = table[ids].astype(np.float32)
    return out


def one_result(results: Sequence[Result]) -> Result:
    """Bundles that were run one after the other as one: the calls are numbered on, and the last one says how it ended."""
    outputs: dict[int, Array] = {}
    errors: dict[int, str] = {}
    call_s: tuple[float, ...] = ()
    for result in results:
        outputs |= {len(call_s) + call: output for call, output in result.outputs.items()}
        errors |= {len(call_s) + call: error for call, error in result.errors.items()}
        call_s += result.call_s
    peak = max(result.peak_rss_bytes for result in results)
    return replace(results[-1], outputs=outputs, errors=errors, call_s=call_s, peak_rss_bytes=peak)
