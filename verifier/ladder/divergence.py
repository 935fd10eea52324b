"""Where a wrong token comes from: what the eager model with the recipe's quantization says at the same place."""

from __future__ import annotations

import torch

from verifier.core.compare import Array
from verifier.families.answering import splice
from verifier.families.definition import Decoder, Definition
from verifier.families.samples import Sample


def quantized_token(decoder: Decoder, definition: Definition, sample: Sample, vision: Array, at: int) -> int:
    """The token that the `quantized` rung's decoder favours at place `at` of the golden answer, fed with image tokens [P, D]."""
    answer = (*sample.golden.ids[:at], 0)  # splice drops the last one
    x = splice(definition, sample, torch.from_numpy(vision)[None], answer)
    position = torch.tensor([0])
    with torch.no_grad():
        cos, sin = decoder.rope.get_freqs(position, x.shape[1])
        for layer in decoder.layers:
            x, _ = layer(x, cos, sin, {"input_pos": position})
        return int(decoder.output(decoder.norm(x)[0, -1]).argmax())
