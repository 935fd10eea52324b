"""What a family says of itself hangs together, and a checkpoint of no family is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verifier.core.errors import CheckpointError
from verifier.families.conventions import DECODER, ENCODER, ROLES
from verifier.families.family import Family
from verifier.families.llava.family import Llava
from verifier.families.registry import FAMILIES, open_checkpoint, open_family


@pytest.fixture(scope="module")
def family() -> Family:
    """llava_tiny's."""
    return open_family(open_checkpoint())


def test_every_parameter_has_a_block_that_checks_have_cases_of(family: Family) -> None:
    """Its method in front, its tensor in the checkpoint, its part judged with a block of the family; no two share a key or a name."""
    parameters, blocks = family.parameters(), family.blocks()
    assert len({p.name for p in parameters}) == len({p.key for p in parameters}) == len(parameters) > 100
    assert {p.name.partition(".")[0] for p in parameters} == set(ROLES)
    assert {p.key for p in parameters} | set(family.unused) == set(family.checkpoint.keys)
    assert {family.block_of(family.part_of(p.name)) for p in parameters} <= set(blocks)
    assert len(set(blocks)) == len(blocks)


def test_the_projector_is_a_part_that_is_judged_with_the_last_layer(family: Family) -> None:
    """It is lowered into one delegate with that layer's second half."""
    part = family.part_of(f"{ENCODER}.projector.linear_1.weight")
    assert part == f"{ENCODER}.projector"
    last = family.checkpoint.geometry.vision.layers_used - 1
    assert family.block_of(part) == f"{ENCODER}.layers.{last}"


def test_the_encoder_in_halves_is_the_encoder(family: Family) -> None:
    """The halves of its layers one after the other give the image tokens to the bit, and each names a norm that owns a parameter."""
    definition = family.definition(max_len=8)
    encoder = definition.encoder
    norms = [encoder.first_norm, *(norm for layer in encoder.blocks for norm in layer.norms)]
    assert {f"{ENCODER}.{norm}" for norm in norms} <= {p.module for p in family.parameters()}
    assert len(set(norms)) == 1 + 2 * len(encoder.blocks) == 1 + 2 * family.checkpoint.geometry.vision.layers_used
    image = torch.randint(0, 256, (3, 336, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stream = encoder.embedded(image)
        for layer in encoder.blocks:
            stream = layer.feed_forward(layer.attention(stream))
        assert torch.equal(encoder.project(stream), definition.image_tokens(image))


def test_roles_of_parameters(family: Family) -> None:
    """What a constant that holds one is used for."""
    roles = {p.name: family.role_of(p, family.checkpoint.tensor(p.key).dim()) for p in family.parameters()}
    assert roles["token_embedding.weight"] == "embedding"
    assert roles[f"{DECODER}.norm.weight"] == "norm weight"
    assert roles[f"{DECODER}.layers.0.attention.wq.weight"] == "linear"
    assert roles[f"{ENCODER}.tower.patch_embedding.weight"] == "convolution"
    assert roles[f"{ENCODER}.projector.linear_2.bias"] == "bias"
    assert roles[f"{ENCODER}.tower.class_embedding"] == "addend"


def test_a_derived_constant_that_nothing_explains_is_none(family: Family) -> None:
    """A role that is not known, and a table of another shape."""
    assert family.derived("charm", DECODER, (1,), order=0) == []
    assert family.derived("rope", DECODER, (3, 3), order=0) == []
    ((epsilon, _),) = family.derived("epsilon", DECODER, (), order=0)
    assert float(epsilon) == pytest.approx(family.checkpoint.geometry.text.norm_eps)


def test_a_checkpoint_of_no_family_is_refused(family: Family) -> None:
    """By name, with the families that there are."""
    other = replace(family.checkpoint, config=family.checkpoint.config | {"model_type": "smolvlm"})
    with pytest.raises(CheckpointError, match=r"not known\n  got: smolvlm\n  expected: llava"):
        open_family(other)


def test_a_decoder_of_its_own_makes_a_family(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA with another decoder has LLaVA's model type: the registry tells them apart, and LLaVA itself stays what it is."""

    class Other(Llava):
        """LLaVA of Mistral."""

    monkeypatch.setitem(FAMILIES, "llava mistral", Other)
    config = family.checkpoint.config
    mistral = config | {"text_config": config["text_config"] | {"model_type": "mistral"}}
    assert type(open_family(replace(family.checkpoint, config=mistral))) is Other
    assert type(open_family(family.checkpoint)) is Llava


def test_registry() -> None:
    """By the model type of config.json."""
    assert list(FAMILIES) == ["llava"]
