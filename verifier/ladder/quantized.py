"""The `quantized` rung of the decoder: the eager definition with the recipe's 4-bit weights and per-row int8 activations.

Weights come from the checkpoint by the scheme that the file's bytes show, rounded to bf16 scales as XNNPACK holds them; those that the audit found right
in the file are read from it instead of made again. What is left between this rung and the program is what lowering did: passes, partitions, packing, the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from verifier.artifact.program import Artifact
from verifier.audit.expected import stated_scheme
from verifier.audit.recipe import Quantized, quantized_linear
from verifier.audit.run import Audit, exact_linears
from verifier.backends.backend import GraphValue
from verifier.backends.xnnpack.arithmetic import TIE_WIDTH, QuantizedRows, centred_rows, multiply_groups, quantize_rows
from verifier.backends.xnnpack.context import channel_scales, constant_weights
from verifier.core.limits import limit
from verifier.core.types import Recipe, Scheme
from verifier.families.conventions import DECODER
from verifier.families.definition import Decoder
from verifier.families.family import Family

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


@dataclass(frozen=True)
class Form:
    """How the weights of the decoder's linears are stored, by their names with the method in front: as a recipe says, or as the bytes of a file
    show where there is an audit of it."""

    recipe: Recipe
    artifact: Artifact | None = None
    audit: Audit | None = None

    def scheme(self, name: str) -> Scheme:
        """Groups, quantizer and bits of a weight."""
        if self.audit is not None:
            return self.audit.source.scheme(name)
        return stated_scheme(self.recipe, name)

    def plain(self, name: str) -> bool:
        """Whether a file without manifest holds a weight in fp32."""
        return name in self._plain

    def integers(self, name: str, weight: Tensor) -> Quantized:
        """Integers and scales of a weight [N, K]: the file's where the audit found nothing wrong with them, else what its scheme makes of it."""
        value = self._exact.get(name)
        if value is None or self.artifact is None or value.dims != tuple(weight.shape):
            return quantized_linear(weight, self.scheme(name))
        return Quantized(constant_weights(value, self.artifact.storage), channel_scales(value, self.artifact.storage))

    @cached_property
    def _exact(self) -> dict[str, GraphValue]:
        return {} if self.audit is None else exact_linears(self.audit)

    @cached_property
    def _plain(self) -> frozenset[str]:
        audit = self.audit
        if audit is None or audit.source.declared:
            return frozenset()
        pairs = zip(audit.inventory, audit.parameters, strict=True)
        return frozenset(p.name for c, p in pairs if p is not None and c.role == "linear" and not c.is_quantized)


def _emulated(linear: nn.Linear, x: Tensor, *, rounding: Rounding, second: bool) -> Tensor:
    """x [..., K] fp32 -> [..., N] fp32: int8 rows times 4-bit groups, their sums in fp64."""
    scales: Any = linear.scales
    return rounding.multiply(x, linear.weight.to(torch.float32), scales, second=second).to(torch.float32)


def _quantize(module: nn.Module, name: str, *, form: Form, rounding: Rounding) -> None:
    if not isinstance(module, nn.Linear) or form.plain(f"{DECODER}.{name}.weight"):
        return
    made = form.integers(f"{DECODER}.{name}.weight", module.weight)
    module.weight = nn.Parameter(made.integers, requires_grad=False)
    module.register_buffer("scales", made.scales.reshape(module.out_features, -1))
    second = name.endswith(SECOND_IN_A_BLOCK)
    module.forward = partial(_emulated, module, rounding=rounding, second=second)  # type: ignore[method-assign]


def build_quantized_decoder(family: Family, form: Form, rounding: Rounding | None = None) -> Decoder:
    """ExecuTorch's eager transformer whose linears compute as 8da4w does; integers and scales of their weights have a `form`."""
    return family.decoder(
        max_seq_len=form.recipe.max_seq_len,
        max_context_len=form.recipe.max_context_len,
        on_module=partial(_quantize, form=form, rounding=rounding or Rounding()),
    )
