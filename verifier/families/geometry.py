"""The shape of a model: the numbers of its configuration that more than its family asks for. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionGeometry:
    """The encoder of images. `layers_used` counts the layers that feed the projector (23 of 24 in LLaVA-1.5)."""

    width: int
    hidden: int
    layers: int
    layers_used: int
    heads: int
    image_px: int
    patch_px: int
    norm_eps: float

    @property
    def patches(self) -> int:
        """Image tokens that reach the decoder (without a class token): (image / patch) squared."""
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True)
class TextGeometry:
    """The decoder. `tied`: a checkpoint without an output head uses the embedding table, or the other way around. `max_positions` are
    those that the model was trained for (`max_position_embeddings`)."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    tied: bool = False
    max_positions: int = 2048

    def cache_bytes(self, length: int) -> int:
        """The KV-cache of fp32 for `length` positions: 2 x layers x length x kv_heads x head_dim x 4 bytes."""
        return 2 * self.layers * length * self.kv_heads * self.head_dim * 4


@dataclass(frozen=True)
class Geometry:
    """Encoder of images and decoder; `image_token_id` is the token that stands for an image in a text."""

    vision: VisionGeometry
    text: TextGeometry
    image_token_id: int
