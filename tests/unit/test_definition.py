"""The definition computes what Hugging Face computes, layer by layer, for several geometries."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import sqnr_db
from verifier.families.llava.definition import build_definition
from verifier.families.llava.hugging_face import load_hugging_face
from verifier.families.llava.shapes import decoder_shapes
from verifier.families.llava.text import construct_decoder
from verifier.families.registry import open_checkpoint


@pytest.mark.parametrize("custom_sdpa", [True, False])
def test_definition_equals_hugging_face_with_grouped_queries(micro_checkpoint: Path, custom_sdpa: bool) -> None:
    """Vision, and logits at every position, to 100 dB; with and without the custom attention op."""
    from verifier.families.llava.definition import build_decoder

    checkpoint = open_checkpoint(micro_checkpoint)
    made = build_definition(checkpoint)
    made = replace(made, build_decoder=partial(build_decoder, checkpoint, custom_sdpa=custom_sdpa))
    reference = load_hugging_face(checkpoint)
    image = torch.randint(0, 256, (3, 56, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = made.encoder.normalize(image)
    assert pixels.shape == (1, 3, 56, 56)
    with torch.no_grad():
        tower = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = reference.model.multi_modal_projector(tower)
        ids = torch.arange(3, 60)[None]
        embeddings = torch.cat([made.image_tokens(image), made.embed(ids)], dim=1)
        logits = made.decoder.output(made.hidden(embeddings)[0])
        expected_logits = reference(inputs_embeds=embeddings).logits
    assert sqnr_db(actual=made.image_tokens(image).numpy(), expected=expected.numpy()) > 100
    # without the custom op the cache returns all 768 rows, masked: the values are the same
    assert sqnr_db(actual=logits.numpy(), expected=expected_logits.numpy()) > 100


def test_definition_goes_on_in_its_cache(micro_checkpoint: Path) -> None:
    """Token by token equals all at once: position and cache of the reference itself."""
    made = build_definition(open_checkpoint(micro_checkpoint))
    embeddings = made.embed(torch.arange(3, 23)[None])
    whole = made.hidden(embeddings)[0][0, -1]
    for position in range(20):
        last = made.hidden(embeddings[:, position : position + 1], start=position)[0][0, -1]
    assert sqnr_db(actual=last.numpy(), expected=whole.numpy()) > 100


def test_odd_margins_lie_right_and_below(micro_checkpoint: Path) -> None:
    """55 wide in 56: the extra column is on the right (HF#37819 lost it)."""
    vision = build_definition(open_checkpoint(micro_checkpoint)).encoder
    white = torch.full((3, 56, 54), 255, dtype=torch.uint8)
    lit = (vision.normalize(white)[0, 0] > 0).numpy()
    assert np.flatnonzero(lit.any(0)).tolist() == list(range(1, 55))


def test_parts_are_built_when_they_are_used(micro_checkpoint: Path) -> None:
    """A check of the file alone takes neither; forgetting what was not built builds nothing."""
    made = build_definition(open_checkpoint(micro_checkpoint))
    made.forget()
    assert made.embedding.shape[1] == made.geometry.text.width
    assert not {"encoder", "decoder"} & made.__dict__.keys()
    assert len(made.decoder.layers) == made.geometry.text.layers
    assert made.decoder is made.decoder


def test_shapes_are_those_of_executorchs_transformer(micro_checkpoint: Path) -> None:
    """The table that headers are held against, by the module that is filled: of a checkpoint with grouped queries."""
    geometry = open_checkpoint(micro_checkpoint).geometry.text
    made = construct_decoder(geometry, max_seq_len=8, max_context_len=8, custom_sdpa=False)
    assert decoder_shapes(geometry) == {name: tuple(p.shape) for name, p in made.named_parameters()}
