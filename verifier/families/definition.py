"""The fp32 reference of a family as everything else sees it: what turns images and ids into embeddings, and embeddings into logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

DEFAULT_MAX_LEN = 768
"""Tokens that a definition holds if nobody says how many."""
Module = Callable[[Tensor], Tensor]
"""[..., D] -> [..., D']."""
LayerObserver = Callable[[int, int, Tensor], None]
"""Is told the number of the sequence, the number of the layer, and the state [1, S, D] behind it."""


@dataclass(frozen=True)
class EncoderLayer:
    """A layer of the encoder of images: the norms that read the residual stream before its two halves, by their names with the method left
    out, and each half: the stream before it [1, P, D] -> the stream behind it."""

    norms: tuple[str, str]
    attention: Module
    feed_forward: Module


class Encoder(Protocol):
    """The encoder of images, layer by layer."""

    @property
    def first_norm(self) -> str:
        """The norm that reads what `tokens` gives, by its name with the method left out."""
        ...

    @property
    def blocks(self) -> Sequence[EncoderLayer]:
        """Its layers in the order of the computation."""
        ...

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] -> normalized pixels [1, 3, H, H]."""
        ...

    def tokens(self, given: Tensor) -> Tensor:
        """What a program is given, uint8 [3, h, w] or normalized pixels [1, 3, H, H] -> tokens before the first norm [1, P, D]."""
        ...

    def embedded(self, given: Tensor) -> Tensor:
        """The same -> the stream before the first layer [1, P, D]."""
        ...

    def project(self, stream: Tensor) -> Tensor:
        """The stream behind the last layer -> image tokens [1, P, D']."""
        ...


class Rope(Protocol):
    """Rotary position embedding."""

    def get_freqs(self, position: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `tokens` positions from int64 [1] on."""
        ...


class Attention(Protocol):
    """Attention with a KV-cache."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, *, input_pos: Tensor) -> tuple[Tensor, object]:
        """Normalized states [1, S, D] at a position -> what is added to the stream."""
        ...


class DecoderLayer(Protocol):
    """A layer of the decoder as ExecuTorch's Transformer has it."""

    @property
    def attention_norm(self) -> Module:
        """The norm before the attention."""
        ...

    @property
    def attention(self) -> Attention:
        """The first half, without norm and residual."""
        ...

    @property
    def ffn_norm(self) -> Module:
        """The norm before the feed-forward block."""
        ...

    @property
    def feed_forward(self) -> Module:
        """The second half, without norm and residual."""
        ...

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, options: dict[str, Tensor]) -> tuple[Tensor, object]:
        """The stream before the layer [1, S, D] -> the stream behind it; `options` hold the position as `input_pos`."""
        ...


class Decoder(Protocol):
    """ExecuTorch's Transformer without its embedding table, with fp32 or with quantized linears."""

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        """In the order of the computation."""
        ...

    @property
    def rope(self) -> Rope:
        """That of all layers."""
        ...

    @property
    def norm(self) -> Module:
        """The norm behind the last layer."""
        ...

    @property
    def output(self) -> Module:
        """Normalized states [..., D] -> logits [..., V]."""
        ...


class Definition(Protocol):
    """An eager model in fp32. Calls at position 0 start anew; later positions go on in the decoder's cache."""

    @property
    def encoder(self) -> Encoder:
        """The encoder of images, layer by layer."""
        ...

    @property
    def decoder(self) -> Decoder:
        """The decoder, layer by layer."""
        ...

    @property
    def embedding(self) -> Tensor:
        """The token embedding [V, D]."""
        ...

    @property
    def head(self) -> Tensor:
        """The weights of the last linear [V, D], which gives the logits."""
        ...

    def image_tokens(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w], or what a program is given in its place, normalized pixels [1, 3, H, H] -> [1, P, D]."""
        ...

    def tokens_of_pixels(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [1, 3, H, H] -> [1, P, D]."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [1, S] -> [1, S, D]."""
        ...

    def hidden(self, embeddings: Tensor, *, start: int = 0) -> tuple[Tensor, list[Tensor]]:
        """[1, S, D] at position `start` -> (normalized last hidden state [1, S, D], output of every layer)."""
        ...

    def hidden_each(
        self, sequences: Sequence[Tensor], *, starts: Sequence[int], observe: LayerObserver | None = None
    ) -> list[Tensor]:
        """Normalized last hidden states of several sequences, [1, S, D] each, layer by layer: a streamed layer is read once.

        A sequence that starts at 0 begins anew; one that starts later goes on with the sequence before it in the list.
        """
        ...

    def forget(self) -> None:
        """Clear the decoder's cache, and give its memory back, and a streamed layer's."""
        ...
