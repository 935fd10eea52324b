"""The whole definition in fp32, as the reference of every comparison: image -> tokens, ids -> embeddings, -> logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.families.checkpoint import Checkpoint
from verifier.families.definition import DEFAULT_MAX_LEN, Caches, LayerObserver
from verifier.families.geometry import Geometry
from verifier.families.llava.keymap import map_keys
from verifier.families.llava.shapes import require_shapes
from verifier.families.llava.text import clear_caches, construct_decoder, fresh_caches, use_cache
from verifier.families.llava.vision import VisionEncoder
from verifier.families.streaming import ParameterHook, is_large, load_parameters, stream_layers, unload_layers


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
    streamed: bool = False,
) -> nn.Module:
    """The `text_decoder` method, filled from the checkpoint; `on_module` may replace weights as they arrive. `streamed` reads a
    layer when it is called."""
    decoder = construct_decoder(
        checkpoint.geometry.text, max_seq_len=max_seq_len, max_context_len=max_context_len, custom_sdpa=custom_sdpa
    )
    fill = stream_layers if streamed else load_parameters
    fill(decoder, map_keys(checkpoint.keys, checkpoint.geometry).text, checkpoint, on_module=on_module)
    return decoder


@dataclass(frozen=True)
class Definition:
    """Eager LLaVA in fp32. Calls at position 0 start anew; later positions go on in the decoder's cache.

    Each part is built when it is first used: a check of the file alone costs neither weights nor the import of ExecuTorch's Transformer.
    """

    geometry: Geometry
    build_encoder: Callable[[], VisionEncoder] = field(repr=False)
    build_decoder: Callable[[], Any] = field(repr=False)  # ExecuTorch's Transformer, which has no types
    read_embedding: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def encoder(self) -> VisionEncoder:
        """The encoder of images."""
        return self.build_encoder()

    @cached_property
    def decoder(self) -> Any:
        """ExecuTorch's Transformer."""
        return self.build_decoder()

    @cached_property
    def embedding(self) -> Tensor:
        """The token embedding in fp32, [V, D]."""
        return self.read_embedding()

    @property
    def head(self) -> Tensor:
        """The weights of the last linear [V, D]."""
        weight: Tensor = self.decoder.output.weight
        return weight

    def image_tokens(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w], or what a program is given in its place, normalized pixels [1, 3, H, H] -> [1, P, D]."""
        return self.tokens_of_pixels(self.encoder.pixels(image))

    def tokens_of_pixels(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [1, 3, H, H] -> [1, P, D]."""
        with torch.no_grad():
            out: Tensor = self.encoder.projector(self.encoder.tower(pixels))
        return out

    def forget(self) -> None:
        """Clear the decoder's cache, and give its memory back, and a streamed layer's."""
        if "decoder" in self.__dict__:  # there is none before its first use
            clear_caches(self.decoder)
            unload_layers(self.decoder)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [1, S] -> [1, S, D]."""
        return functional.embedding(ids, self.embedding)

    def hidden(self, embeddings: Tensor, *, start: int = 0) -> tuple[Tensor, list[Tensor]]:
        """[1, S, D] at position `start` -> (normalized last hidden state [1, S, D], output of every layer)."""
        states: list[Tensor] = []
        last = self.hidden_each([embeddings], starts=[start], observe=lambda _s, _l, state: states.append(state))
        return last[0], states

    def fresh_caches(self) -> Caches:
        """An empty KV-cache for one sequence."""
        return fresh_caches(self.decoder)

    def hidden_each(
        self,
        sequences: Sequence[Tensor],
        *,
        starts: Sequence[int],
        observe: LayerObserver | None = None,
        caches: Sequence[Caches] | None = None,
    ) -> list[Tensor]:
        """Normalized last hidden states of several sequences, [1, S, D] each, layer by layer: a streamed layer is read once.

        A sequence that starts at 0 begins anew; one that starts later goes on with the sequence before it in the list, or, with `caches`, with
        what its own cache holds before that position.
        """
        decoder: Any = self.decoder
        with torch.no_grad():
            positions = [torch.tensor([start]) for start in starts]
            turns = [decoder.rope.get_freqs(p, x.shape[1]) for p, x in zip(positions, sequences, strict=True)]
            states = list(sequences)
            for number, layer in enumerate(decoder.layers):
                for place, (position, (cos, sin)) in enumerate(zip(positions, turns, strict=True)):
                    if caches is not None:
                        use_cache(layer, caches[place][number])
                    states[place], _ = layer(states[place], cos, sin, {"input_pos": position})
                    if observe is not None:
                        observe(place, number, states[place])
            unload_layers(decoder)
            if caches is not None:
                clear_caches(decoder)
            return [decoder.norm(state) for state in states]


def build_definition(checkpoint: Checkpoint, *, max_len: int = DEFAULT_MAX_LEN) -> Definition:
    """The fp32 reference; `max_len` bounds the sequence it can score. Raises `CheckpointError` for a tensor of another shape."""
    require_shapes(checkpoint)
    decoder = partial(
        build_decoder, checkpoint, max_seq_len=max_len, max_context_len=max_len, streamed=is_large(checkpoint)
    )
    return Definition(
        checkpoint.geometry, partial(build_vision_encoder, checkpoint), decoder, partial(embedding_table, checkpoint)
    )
