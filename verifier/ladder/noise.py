"""What rounding activations to int8 costs a decoder, measured without the program: how far two sound orders of its sums may be apart."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.core.compare import Difference, compare
from verifier.core.errors import VerifierError
from verifier.families.definition import Decoder
from verifier.ladder.quantized import Rounding

NOISE_TOKENS = 16
"""Tokens of a prompt on which it is measured."""


def rounding_noise_db(quantized: Decoder, rounding: Rounding, embeddings: Tensor) -> float:
    """SQNR of a token's logits or last hidden state with int8 activations against the same 4-bit weights without, in dB: of all tokens the
    worst, the smaller of the two. The mean minus some standard deviations is unsuitable: in a shallow decoder a few tokens are almost
    exact, which widens the distribution upwards by 7 dB without lowering the minimum. Measured on 16 tokens: 28.3 dB for a synthetic 7B (mean 29.6, deviation 0.6), 37 to 41 dB for
    llava_tiny, which leaves the count of ties in force there.

    `quantized` is the eager rung that `rounding` belongs to; `embeddings` [1, S, D] start at position 0. Both go through a layer together.
    """
    position = torch.tensor([0])
    with torch.no_grad():
        cos, sin = quantized.rope.get_freqs(position, embeddings.shape[1])
        rounded = exact = embeddings
        for layer in quantized.layers:
            rounded, _ = layer(rounded, cos, sin, {"input_pos": position})
            with rounding.left_out():
                exact, _ = layer(exact, cos, sin, {"input_pos": position})
        logits = quantized.output(quantized.norm(rounded))
        with rounding.left_out():
            exact_logits = quantized.output(quantized.norm(exact))
    pairs = ((rounded, exact), (logits, exact_logits))
    return min(_worst_row_db(a[0], e[0]) for a, e in pairs)


def _worst_row_db(actual: Tensor, expected: Tensor) -> float:
    made = compare(actual=actual.numpy(), expected=expected.numpy())
    if not isinstance(made, Difference):
        raise VerifierError("what rounding costs this checkpoint cannot be measured", got=made.reason)
    return float(made.row_sqnr_db.min())
