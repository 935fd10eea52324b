"""The `quantized` rung of the decoder: the eager definition with the recipe's 4-bit weights and per-row int8 activations.

Weights come from the checkpoint by the recipe, rounded to bf16 scales as XNNPACK holds them; of a large model, those that the audit
found in the file bit for bit are read from it instead of made again. What is left between this rung and the program is what lowering did: passes, partitions, packing, the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifier.artifact.program import Artifact
from verifier.audit.recipe import Quantized, quantized_linear
from verifier.audit.run import Audit, exact_linears
from verifier.backends.xnnpack.arithmetic import TIE_WIDTH, QuantizedRows, centred_rows, multiply_groups, quantize_rows
from verifier.backends.xnnpack.context import channel_scales, constant_weights
from verifier.core.limits import limit
from verifier.core.types import Recipe
from verifier.families.conventions import DECODER
from verifier.families.definition import Decoder
from verifier.families.family import Family

Held = Callable[[str], Quantized | None]

SECOND_IN_A_BLOCK = ("wo", "w2")
SECOND_TIE_WIDTH = limit("layers.graph.second_tie").value * TIE_WIDTH
"""Steps."""


class Rounding:
    """How the linears of a quantized decoder round their activations: like XNNPACK (default), with every near-tie rounded the other way
    (`flip_ties`), or not at all (`left_out`)."""

    def __init__(self) -> None:
        self._flip_ties = False
        self._left_out = False

    @contextmanager
    def flip_ties(self) -> Iterator[None]:
        """Round every near-tie the other way: the worst that another order of the same fp32 operations can do to the activations."""
        self._flip_ties = True
        try:
            yield
        finally:
            self._flip_ties = False

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """4-bit weights alone."""
        self._left_out = True
        try:
            yield
        finally:
            self._left_out = False

    def multiply(self, x: Tensor, weights: Tensor, scales: Tensor, *, second: bool) -> Tensor:
        """x fp32 [..., K] times 4-bit groups: fp64 [..., N]; `second` if a linear of the same block lies before it."""
        if self._left_out:
            return multiply_groups(x, weights, scales)
        rows = self.rows(x, second=second)
        return multiply_groups(centred_rows(rows), weights, scales) * rows.scale.double()

    def rows(self, x: Tensor, *, second: bool) -> QuantizedRows:
        """fp32 [..., K] as int8 rows; `second` if a linear of the same block lies before it."""
        return quantize_rows(x, tie_width=SECOND_TIE_WIDTH if second else TIE_WIDTH, flip_ties=self._flip_ties)


def nothing_held(_name: str) -> None:
    """Every weight is made from the checkpoint."""


def held_in(artifact: Artifact, audit: Audit) -> Held:
    """The linears that a file holds exactly as the recipe gives them."""
    exact = exact_linears(audit)

    def held(name: str) -> Quantized | None:
        value = exact.get(name)
        if value is None:
            return None
        return Quantized(constant_weights(value, artifact.storage), channel_scales(value, artifact.storage))

    return held


def _emulated(linear: nn.Linear, x: Tensor, *, rounding: Rounding, second: bool) -> Tensor:
    """x [..., K] fp32 -> [..., N] fp32: int8 rows times 4-bit groups, their sums in fp64."""
    scales: Any = linear.scales
    return rounding.multiply(x, linear.weight.to(torch.float32), scales, second=second).to(torch.float32)


def _quantize(module: nn.Module, name: str, *, recipe: Recipe, held: Held, rounding: Rounding) -> None:
    if not isinstance(module, nn.Linear):
        return
    scheme = recipe.head if name == "output" else recipe.linears
    made = held(f"{DECODER}.{name}.weight") or quantized_linear(module.weight, scheme)
    module.weight = nn.Parameter(made.integers, requires_grad=False)
    module.register_buffer("scales", made.scales.reshape(module.out_features, -1))
    second = name.endswith(SECOND_IN_A_BLOCK)
    module.forward = partial(_emulated, module, rounding=rounding, second=second)  # type: ignore[method-assign]


def build_quantized_decoder(
    family: Family, recipe: Recipe, held: Held = nothing_held, rounding: Rounding | None = None
) -> Decoder:
    """ExecuTorch's eager transformer whose linears compute as the recipe's 8da4w does; weights stay int8. `held` gives the integers and
    scales of a weight by its name with the method in front, where they are known to be the recipe's."""
    return family.decoder(
        max_seq_len=recipe.max_seq_len,
        max_context_len=recipe.max_context_len,
        on_module=partial(_quantize, recipe=recipe, held=held, rounding=rounding or Rounding()),
    )
