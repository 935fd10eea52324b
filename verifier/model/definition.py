"""The whole definition in fp32, as the reference of every comparison: image -> tokens, ids -> embeddings, -> logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.checkpoint import Checkpoint
from verifier.model.geometry import Geometry
from verifier.model.keymap import map_keys
from verifier.model.text import ParameterHook, construct_decoder, load_parameters
from verifier.model.vision import VisionEncoder

DEFAULT_MAX_LEN = 768


def embedding_table(checkpoint: Checkpoint) -> Tensor:
    """The token embedding in fp32, [V, D]."""
    return checkpoint.tensor(map_keys(checkpoint.keys, checkpoint.geometry).embedding).to(torch.float32)


def build_vision_encoder(checkpoint: Checkpoint) -> VisionEncoder:
    """The `vision_encoder` method in fp32, filled from the checkpoint."""
    encoder = VisionEncoder(checkpoint.geometry)
    load_parameters(encoder, map_keys(checkpoint.keys, checkpoint.geometry).vision, checkpoint)
    return encoder.eval()


def build_decoder(
    checkpoint: Checkpoint,
    *,
    max_seq_len: int = DEFAULT_MAX_LEN,
    max_context_len: int = DEFAULT_MAX_LEN,
    custom_sdpa: bool = True,
    on_module: ParameterHook | None = None,
) -> nn.Module:
    """The `text_decoder` method, filled from the checkpoint; `on_module` may replace weights as they arrive."""
    decoder = construct_decoder(
        checkpoint.geometry.text, max_seq_len=max_seq_len, max_context_len=max_context_len, custom_sdpa=custom_sdpa
    )
    load_parameters(decoder, map_keys(checkpoint.keys, checkpoint.geometry).text, checkpoint, on_module=on_module)
    return decoder


@dataclass(frozen=True)
class Definition:
    """Eager LLaVA in fp32. Calls at position 0 start anew; later positions go on in the decoder's cache."""

    geometry: Geometry
    vision: VisionEncoder
    decoder: Any  # ExecuTorch's Transformer, which has no types
    embedding: Tensor

    def image_tokens(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] -> [1, P, D]."""
        with torch.no_grad():
            out: Tensor = self.vision(image)
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [1, S] -> [1, S, D]."""
        return functional.embedding(ids, self.embedding)

    def hidden(self, embeddings: Tensor, *, start: int = 0) -> tuple[Tensor, list[Tensor]]:
        """[1, S, D] at position `start` -> (normalized last hidden state [1, S, D], output of every layer)."""
        decoder: Any = self.decoder
        states: list[Tensor] = []
        position = torch.tensor([start])
        with torch.no_grad():
            cos, sin = decoder.rope.get_freqs(position, embeddings.shape[1])
            h = embeddings
            for layer in decoder.layers:
                h, _ = layer(h, cos, sin, {"input_pos": position})
                states.append(h)
            return decoder.norm(h), states

    def last_logits(self, embeddings: Tensor, *, start: int = 0) -> Tensor:
        """[1, S, D] at position `start` -> logits of the last token [V]."""
        with torch.no_grad():
            out: Tensor = self.decoder.output(self.hidden(embeddings, start=start)[0][0, -1])
        return out


def build_definition(checkpoint: Checkpoint, *, max_len: int = DEFAULT_MAX_LEN) -> Definition:
    """The fp32 reference; `max_len` bounds the sequence it can score."""
    return Definition(
        checkpoint.geometry,
        build_vision_encoder(checkpoint),
        build_decoder(checkpoint, max_seq_len=max_len, max_context_len=max_len),
        embedding_table(checkpoint),
    )
