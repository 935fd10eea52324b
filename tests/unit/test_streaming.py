"""A decoder whose layers come from the checkpoint one at a time computes what one that is held whole computes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verifier.core.errors import CheckpointError
from verifier.core.types import Recipe
from verifier.families import streaming
from verifier.families.answering import load_sample
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.definition import Definition, build_definition
from verifier.families.llava.hugging_face import (
    _HuggingFaceLayers,
    compare_layer_by_layer,
    compare_with_hugging_face,
    load_hugging_face,
)
from verifier.families.llava.prompt import DEFAULT_QUESTION
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import GoldenImage
from verifier.ladder.quantized import Form, build_quantized_decoder


def _both(monkeypatch: pytest.MonkeyPatch, build: Any) -> tuple[Any, Any]:
    """What is built of a small checkpoint, and of the same one when every checkpoint is large."""
    whole = build()
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 0)
    return whole, build()


def _filled(decoder: Any) -> list[int]:
    layers = enumerate(decoder.layers)
    return [number for number, layer in layers if not any(p.is_meta for p in layer.parameters())]


def _run(decoder: Any, like: Definition) -> list[torch.Tensor]:
    made = replace(like, build_decoder=lambda: decoder)
    torch.manual_seed(0)
    first, second, third = (torch.randn(1, length, 64) for length in (7, 1, 4))
    return made.hidden_each([first, second, third], starts=[0, 7, 0])


def test_streamed_layers_compute_the_same(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in fp32, with one layer filled at a time, and again from the first layer on."""
    checkpoint = open_checkpoint(micro_checkpoint)
    whole, streamed = _both(monkeypatch, partial(build_definition, checkpoint))
    assert _filled(whole.decoder) == [0, 1]
    assert _filled(streamed.decoder) == []
    for _ in range(2):
        pairs = zip(_run(whole.decoder, whole), _run(streamed.decoder, whole), strict=True)
        assert all(torch.equal(a, e) for a, e in pairs)
        assert _filled(streamed.decoder) == []


def test_layers_are_filled_one_at_a_time(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a pass goes through them; behind it none is."""
    _, streamed = _both(monkeypatch, partial(build_definition, open_checkpoint(micro_checkpoint)))
    seen: list[list[int]] = []
    streamed.hidden_each([torch.randn(1, 3, 64)], starts=[0], observe=lambda *_: seen.append(_filled(streamed.decoder)))
    assert seen == [[0], [1]]
    assert _filled(streamed.decoder) == []


def test_forgotten_cache_is_as_new(micro_checkpoint: Path) -> None:
    """A sequence that goes on behind one that was forgotten goes on behind zeros."""
    made = build_definition(open_checkpoint(micro_checkpoint))
    x, y = torch.randn(1, 5, 64), torch.randn(1, 2, 64)
    new = made.hidden(y, start=5)[0]
    made.hidden(x)
    assert not torch.equal(made.hidden(y, start=5)[0], new)
    made.forget()
    assert torch.equal(made.hidden(y, start=5)[0], new)


def test_streamed_layers_are_quantized_anew(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `on_module` does to a layer is done every time it is filled; a part of a layer fills it too."""
    checkpoint = open_checkpoint(micro_checkpoint)
    recipe = Recipe(group_size=32)
    whole, streamed = _both(monkeypatch, lambda: build_quantized_decoder(open_family(checkpoint), Form(recipe)))
    like = build_definition(checkpoint)
    for _ in range(2):
        pairs = zip(_run(whole, like), _run(streamed, like), strict=True)
        assert all(torch.equal(a, e) for a, e in pairs)
    x = torch.randn(1, 3, 64)
    assert torch.equal(streamed.layers[0].feed_forward(x), whole.layers[0].feed_forward(x))
    assert _filled(streamed) == [0]


def test_sequences_go_on_where_the_one_before_ended(micro_checkpoint: Path) -> None:
    """Layer by layer over several sequences is what one after the other is."""
    made = build_definition(open_checkpoint(micro_checkpoint))
    x, y = torch.randn(1, 5, 64), torch.randn(1, 2, 64)
    together = made.hidden_each([x, y], starts=[0, 5])
    assert torch.equal(together[0], made.hidden(x)[0])
    assert torch.equal(together[1], made.hidden(y, start=5)[0])
    torch.testing.assert_close(together[1], made.hidden(torch.cat([x, y], 1))[0][:, 5:])


def test_a_layer_that_cannot_be_read_is_named(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that is met in the middle of a run is a refusal, and the layer stays empty."""
    checkpoint = open_checkpoint(micro_checkpoint)
    _, streamed = _both(monkeypatch, partial(build_definition, checkpoint))
    assert _filled(streamed.decoder) == []

    def damaged(_self: Any, key: str) -> Any:
        raise CheckpointError(f"tensor {key} cannot be read")

    monkeypatch.setattr(type(checkpoint), "tensor", damaged)
    with pytest.raises(CheckpointError, match=r"layers\.0"):
        streamed.hidden(torch.randn(1, 2, 64))
    assert _filled(streamed.decoder) == []


def test_hugging_face_layer_by_layer_is_hugging_face(micro_checkpoint: Path) -> None:
    """A model that does not fit is compared as one that does: the same activations, from Hugging Face's own modules."""
    checkpoint = open_checkpoint(micro_checkpoint)
    made = build_definition(checkpoint)
    tokenizer = Tokenizer(micro_checkpoint)
    image = GoldenImage(
        "x", EMBEDDED / "images" / "wide_0.png", "", "x", DEFAULT_QUESTION, (5, 6, 7), (1.0, 1.0, 1.0), ""
    )
    sample = load_sample(image, tokenizer, open_family(checkpoint))
    whole = compare_with_hugging_face(load_hugging_face(checkpoint), made, sample)
    layered = compare_layer_by_layer(checkpoint, made, sample)
    assert [pair.name for pair in layered] == [pair.name for pair in whole]
    for ours, theirs in zip(layered, whole, strict=True):
        tokens = ours.expected.shape[-2]
        np.testing.assert_allclose(ours.expected, theirs.expected[..., :tokens, :], atol=1e-4)
        np.testing.assert_allclose(ours.actual, ours.expected, atol=1e-4)


def test_layer_of_other_names_is_refused(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's module takes its own names and no others."""
    checkpoint = open_checkpoint(micro_checkpoint)
    renamed = {key.replace("q_proj", "query"): path for key, path in checkpoint._locations.items()}
    embedded = build_definition(checkpoint).embed(torch.tensor([[5, 6]]))
    layers = _HuggingFaceLayers(checkpoint, load_hugging_face(checkpoint, layers=0))
    monkeypatch.setitem(checkpoint.__dict__, "_locations", renamed)
    monkeypatch.setattr(type(checkpoint), "tensor", lambda _self, _key: torch.zeros(1))
    with pytest.raises(CheckpointError, match="layer 1 is not Hugging Face's"):
        layers.run(1, embedded, layers.rotation(2))
