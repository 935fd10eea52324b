"""Where wrong tokens come from: what the eager model with the recipe's quantization says at the same places."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from verifier.core.compare import Array
from verifier.core.limits import limit
from verifier.families.answering import splice
from verifier.families.definition import Decoder, Definition
from verifier.families.samples import Sample
from verifier.ladder.limits import chunk_limit_db

DEVIATIONS = limit("greedy.rung.ties")


def quantized_tokens(
    decoder: Decoder, definition: Definition, sample: Sample, vision: Array, favoured: Mapping[int, int]
) -> dict[int, int]:
    """The tokens that the `quantized` rung's decoder favours at places of the golden answer, fed with image tokens [P, D]. `favoured` are the
    program's, by place: where the rung's own is ahead by less than another order of sums moves two logits, it is the program's."""
    last = max(favoured)
    x = splice(definition, sample, torch.from_numpy(vision)[None], (*sample.golden.ids[:last], 0))  # it drops the last
    position = torch.tensor([0])
    with torch.no_grad():
        cos, sin = decoder.rope.get_freqs(position, x.shape[1])
        for layer in decoder.layers:
            x, _ = layer(x, cos, sin, {"input_pos": position})
        rows = decoder.output(decoder.norm(x)[0, -1 - last :])
    ties_db = chunk_limit_db(x.shape[-1], len(decoder.layers))
    found = {}
    for at, token in favoured.items():
        row = rows[at]
        best = int(row.argmax())
        moved = float(row.square().mean().sqrt()) * math.sqrt(2) * 10 ** (-ties_db / 20)
        found[at] = token if DEVIATIONS.admits(float(row[best] - row[token]) / max(moved, 1e-30)) else best
    return found
