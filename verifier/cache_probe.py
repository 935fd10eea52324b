"""Bundles that ask the KV-cache simple questions whose answers need no reference."""

from __future__ import annotations

import numpy as np

from runner.protocol import Array, Bundle
from verifier.artifact.program import Artifact
from verifier.driver import Script, position_array

PROBE_TOKENS = 48
SPLITS: dict[str, tuple[int, ...]] = {"halves": (24, 24), "1 + rest": (1, 47), "rest + 1": (47, 1), "33 + 15": (33, 15)}


def probe_embeddings(table: Array, *, seed: int = 0) -> Array:
    """Embeddings of random token ids, [1, 48, D]: ordinary inputs of the decoder."""
    ids = np.random.default_rng(seed).integers(3, len(table), PROBE_TOKENS)
    out: Array = table[ids][None].astype(np.float32)
    return out


def _feed(script: Script, embeddings: Array, chunks: tuple[int, ...]) -> int:
    call, position = -1, 0
    for chunk in chunks:
        call = script.add("text_decoder", embeddings[:, position : position + chunk], position_array(position))
        position += chunk
    return call


def probe_bundle(artifact: Artifact, table: Array) -> tuple[Bundle, dict[str, int]]:
    """The bundle, and the calls to look at by name.

    One prompt whole, then in several splits, then whole again behind another prompt; the last position alone and as the
    end of a chunk; at last one past the end, alone and at the end of a chunk, which should be errors.
    """
    first, other = probe_embeddings(table), probe_embeddings(table, seed=1)
    limit = artifact.max_seq_len
    script = Script()
    marks = {"whole": _feed(script, first, (PROBE_TOKENS,))}
    marks |= {name: _feed(script, first, chunks) for name, chunks in SPLITS.items()}
    _feed(script, other, (PROBE_TOKENS,))
    marks["after another prompt"] = _feed(script, first, (PROBE_TOKENS,))
    _fill(script, first, limit - 1)
    for name, size, past in (("last one", 1, 0), ("last chunk", 5, 0), ("beyond one", 1, 1), ("beyond chunk", 5, 1)):
        marks[name] = script.add("text_decoder", first[:, :size], position_array(limit - size + past), may_fail=True)
    return Bundle(artifact.path, tuple(script.calls)), marks


def _fill(script: Script, embeddings: Array, length: int) -> None:
    """Fill the cache up to `length` by repeating the probe."""
    for start in range(0, length, PROBE_TOKENS):
        size = min(PROBE_TOKENS, length - start)
        script.add("text_decoder", embeddings[:, :size], position_array(start), keep=False)
