"""How the weights of the decoder's rung are stored: by the recipe, or as the bytes of a file show, linear by linear."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support import EMBEDDED_PTE
from verifier.artifact.program import open_artifact
from verifier.audit.recipe import quantized_linear
from verifier.audit.run import Audit, audit_weights
from verifier.backends.quantization import PerGroup
from verifier.core.types import Recipe, Scheme
from verifier.families.registry import open_checkpoint, open_family
from verifier.ladder.quantized import Form, build_quantized_decoder

WQ, HEAD = "text_decoder.layers.0.attention.wq.weight", "text_decoder.output.weight"
ARTIFACT = open_artifact(EMBEDDED_PTE)


@pytest.fixture(scope="module")
def audit() -> Audit:
    """llava_tiny's without its manifest, every constant compared."""
    return audit_weights(ARTIFACT, open_family(open_checkpoint(None)), Recipe(group_size=64), declared=False)


def _weight(name: str) -> torch.Tensor:
    family = open_family(open_checkpoint(None))
    key = next(parameter.key for parameter in family.parameters() if parameter.name == name)
    return family.checkpoint.tensor(key)


def test_a_recipe_gives_the_head_groups_of_its_own() -> None:
    """All others have the decoder's."""
    form = Form(Recipe(group_size=128, head_group_size=32))
    weight = _weight(HEAD)
    assert form.integers(WQ, weight).scales.shape[1] == weight.shape[1] // 128
    assert form.integers(HEAD, weight).scales.shape[1] == weight.shape[1] // 32


def test_the_bytes_decide_linear_by_linear(audit: Audit) -> None:
    """Each has the scheme that its own bytes show, whatever the recipe says of most; what the file holds right is read from it."""
    form = Form(Recipe(group_size=128), ARTIFACT, audit)
    weight = _weight(WQ)
    made, wanted = form.integers(WQ, weight), quantized_linear(weight, Scheme(64, "affine"))
    assert form.scheme(WQ).group_size == 64
    assert torch.equal(made.integers, wanted.integers)
    assert torch.equal(made.scales.reshape(wanted.scales.shape), wanted.scales)


def test_a_weight_that_the_file_holds_wrong_is_made_of_the_checkpoint(audit: Audit) -> None:
    """The rung is what should be there."""
    at = next(i for i, parameter in enumerate(audit.parameters) if parameter is not None and parameter.name == WQ)
    wrong = replace(audit.constants[at], reason="one integer differs")
    broken = replace(audit, constants=(*audit.constants[:at], wrong, *audit.constants[at + 1 :]))
    weight = _weight(WQ) + 0.1
    made = Form(Recipe(group_size=64), ARTIFACT, broken).integers(WQ, weight)
    assert torch.equal(made.integers, quantized_linear(weight, Scheme(64, "affine")).integers)


def test_a_linear_that_the_file_leaves_in_fp32_stays_so(audit: Audit) -> None:
    """Of a file without manifest: with one, it should have been quantized."""
    at = next(i for i, parameter in enumerate(audit.parameters) if parameter is not None and parameter.name == HEAD)
    constant = audit.inventory[at]
    assert isinstance(constant.stored_quantization, PerGroup)
    plain = replace(constant, value=replace(constant.value, dtype="fp32", quantization=None))
    left = replace(audit, inventory=(*audit.inventory[:at], plain, *audit.inventory[at + 1 :]))
    assert Form(Recipe(group_size=64), ARTIFACT, left).plain(HEAD)
    assert not Form(Recipe(group_size=64), ARTIFACT, audit).plain(HEAD)
    declared = replace(left, source=replace(left.source, declared=True))
    assert not Form(Recipe(group_size=64), ARTIFACT, declared).plain(HEAD)
    decoder = build_quantized_decoder(open_family(open_checkpoint(None)), Form(Recipe(group_size=64), ARTIFACT, left))
    head, other = decoder.output, decoder.layers[0].attention.wq  # type: ignore[attr-defined]
    assert isinstance(head, nn.Linear) and head.weight.dtype == torch.float32
    assert other.weight.dtype == torch.int8
