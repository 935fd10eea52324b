"""A decoder whose layers come from the checkpoint one at a time computes what one that is held whole computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from verifier.checkpoint import open_checkpoint
from verifier.errors import CheckpointError
from verifier.ladder import quantized
from verifier.ladder.quantized import build_quantized_decoder
from verifier.model import definition
from verifier.model.definition import Definition, build_definition
from verifier.types import Recipe


def _both(monkeypatch: pytest.MonkeyPatch, module: Any, build: Any) -> tuple[Any, Any]:
    whole = build()
    monkeypatch.setattr(module, "is_large", lambda _checkpoint: True)
    return whole, build()


def _filled(decoder: Any) -> list[int]:
    layers = enumerate(decoder.layers)
    return [number for number, layer in layers if not any(p.is_meta for p in layer.parameters())]


def _run(decoder: Any, like: Definition) -> list[torch.Tensor]:
    made = Definition(like.geometry, like.vision, decoder, like.embedding)
    torch.manual_seed(0)
    first, second, third = (torch.randn(1, length, 64) for length in (7, 1, 4))
    return made.hidden_each([first, second, third], starts=[0, 7, 0])


def test_streamed_layers_compute_the_same(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in fp32, with one layer filled at a time, and again from the first layer on."""
    checkpoint = open_checkpoint(micro_checkpoint)
    whole, streamed = _both(monkeypatch, definition, partial(build_definition, checkpoint))
    assert _filled(whole.decoder) == [0, 1]
    assert _filled(streamed.decoder) == []
    for _ in range(2):
        pairs = zip(_run(whole.decoder, whole), _run(streamed.decoder, whole), strict=True)
        assert all(torch.equal(a, e) for a, e in pairs)
        assert _filled(streamed.decoder) == [1]


def test_streamed_layers_are_quantized_anew(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `on_module` does to a layer is done every time it is filled; a part of a layer fills it too."""
    checkpoint = open_checkpoint(micro_checkpoint)
    recipe = Recipe(group_size=32)
    whole, streamed = _both(monkeypatch, quantized, partial(build_quantized_decoder, checkpoint, recipe))
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
    _, streamed = _both(monkeypatch, definition, partial(build_definition, checkpoint))

    def damaged(_self: Any, key: str) -> Any:
        raise CheckpointError(f"tensor {key} cannot be read")

    monkeypatch.setattr(type(checkpoint), "tensor", damaged)
    with pytest.raises(CheckpointError, match=r"layers\.0"):
        streamed.hidden(torch.randn(1, 2, 64))
    assert _filled(streamed.decoder) == []
