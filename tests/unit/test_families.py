"""What a family says of itself hangs together, and a program of another convention is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support import EMBEDDED_PTE
from verifier.artifact.program import Artifact, TensorFacts, open_artifact
from verifier.core.errors import ArtifactError, CheckpointError
from verifier.families.conventions import CONVENTIONS, DECODER, ENCODER, ROLES, recognize
from verifier.families.family import Family
from verifier.families.llava.family import Llava
from verifier.families.registry import FAMILIES, open_checkpoint, open_family


@pytest.fixture(scope="module")
def family() -> Family:
    """llava_tiny's."""
    return open_family(open_checkpoint())


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """llava_tiny's program."""
    return open_artifact(EMBEDDED_PTE)


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


def test_the_embedded_program_keeps_to_its_convention(family: Family, artifact: Artifact) -> None:
    """Recognized, with the exact signatures for its checkpoint."""
    assert recognize(artifact) is family.convention
    sizes = family.sizes(artifact.max_seq_len)
    for role in ROLES:
        expected = family.convention.signature(role, sizes)
        assert artifact.methods[role].inputs == expected.inputs
        assert artifact.methods[role].outputs == (expected.output,)


@pytest.mark.parametrize("role", ROLES)
def test_a_program_without_a_method_is_none_of_the_family(artifact: Artifact, role: str) -> None:
    """The refusal names the method, and what there is."""
    lacking = replace(artifact, methods={name: m for name, m in artifact.methods.items() if name != role})
    with pytest.raises(ArtifactError, match=f"no method {role}"):
        recognize(lacking)


@pytest.mark.parametrize(
    ("role", "inputs"),
    [
        (ENCODER, (TensorFacts("FLOAT", (1, 3, 336, 336), False),)),
        (DECODER, (TensorFacts("FLOAT", (1, 768, 256), True),)),
        (DECODER, (TensorFacts("FLOAT", (1, 768, 256), True), TensorFacts("LONG", (768,), True))),
        (DECODER, ()),
    ],
)
def test_another_convention_is_not_understood(artifact: Artifact, role: str, inputs: tuple[TensorFacts, ...]) -> None:
    """Pixels in a batch, no position, a position for each token, no input: refused, not failed."""
    odd = replace(artifact.methods[role], inputs=inputs)
    with pytest.raises(ArtifactError, match=f"calling convention of {role} is not known"):
        recognize(replace(artifact, methods=artifact.methods | {role: odd}))


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


def test_registries() -> None:
    """By the model type of config.json; no two conventions have one name."""
    assert list(FAMILIES) == ["llava"]
    assert len({one.name for one in CONVENTIONS}) == len(CONVENTIONS)
