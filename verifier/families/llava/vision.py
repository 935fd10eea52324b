"""The vision side: CLIP tower up to the feature layer, class token dropped, two-layer GELU projector.

Plain modules, so that `torch.export` sees what the published CLIP computes and nothing of its framework. Source:
Radford et al. 2021 (CLIP, pre-norm ViT with QuickGELU) and Liu et al. 2023 (LLaVA-1.5: features before the last layer).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.families.definition import EncoderLayer
from verifier.families.geometry import Geometry, VisionGeometry
from verifier.families.llava.geometry import CLIP_MEAN, CLIP_STD

RESCALE = 1 / 255
QUICK_GELU = 1.702


class VisionAttention(nn.Module):
    """Self-attention over all P + 1 tokens; no mask. [B, P+1, D] -> [B, P+1, D]."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        width = geometry.width
        self.heads, self.head_dim = geometry.heads, width // geometry.heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled dot product with scale 1 / sqrt(head_dim)."""
        batch, tokens, width = x.shape
        q, k, v = (
            linear(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class VisionLayer(nn.Module):
    """Pre-norm transformer layer with QuickGELU: x * sigmoid(1.702 x)."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(geometry.width, eps=geometry.norm_eps)
        self.attention = VisionAttention(geometry)
        self.norm2 = nn.LayerNorm(geometry.width, eps=geometry.norm_eps)
        self.fc1 = nn.Linear(geometry.width, geometry.hidden)
        self.fc2 = nn.Linear(geometry.hidden, geometry.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P+1, D] -> [B, P+1, D]."""
        return self.transform(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """The first half: the stream before it -> the stream behind it, [B, P+1, D]."""
        out: Tensor = x + self.attention(self.norm1(x))
        return out

    def transform(self, x: Tensor) -> Tensor:
        """The second half: the stream before it -> the stream behind it, [B, P+1, D]."""
        return x + self.feed_forward(self.norm2(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, P+1, D] -> [B, P+1, D], without norm and residual."""
        hidden = self.fc1(x)
        out: Tensor = self.fc2(hidden * torch.sigmoid(QUICK_GELU * hidden))
        return out


class VisionTower(nn.Module):
    """Normalized pixels [B, 3, H, H] -> features of the chosen layer [B, P, D]."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        width, patch = geometry.width, geometry.patch_px
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(geometry.patches + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.layers = nn.ModuleList(VisionLayer(geometry) for _ in range(geometry.layers_used))

    @property
    def used(self) -> list[VisionLayer]:
        """The layers that feed the projector."""
        return [cast(VisionLayer, layer) for layer in self.layers]

    def embed(self, pixels: Tensor) -> Tensor:
        """The tokens, normalized: [B, P+1, D]."""
        out: Tensor = self.pre_norm(self.tokens(pixels))
        return out

    def tokens(self, pixels: Tensor) -> Tensor:
        """Class token first, then patches row by row, plus positions: [B, P+1, D]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the layers that are used and drop the class token."""
        x = self.embed(pixels)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]


class Projector(nn.Module):
    """Vision features [B, P, D] -> image tokens in the decoder's width [B, P, D']."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, x: Tensor) -> Tensor:
        """linear_2(gelu(linear_1(x))), exact GELU."""
        out: Tensor = self.linear_2(functional.gelu(self.linear_1(x)))
        return out


class VisionEncoder(nn.Module):
    """The exported method `vision_encoder`: an image of uint8 [3, h, w], h and w <= 336, -> image tokens [1, P, D'].

    The image is centred on a black square, scaled and normalized inside the program, as ExecuTorch's own LLaVA does
    (black, not the mean colour: constant padding is what its kernels have).
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.side_px = geometry.vision.image_px
        self.tower = VisionTower(geometry.vision)
        self.projector = Projector(geometry.vision.width, geometry.text.width)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] -> normalized pixels [1, 3, H, H]; odd margins put the extra pixel right and below."""
        left, top = (self.side_px - image.shape[2]) // 2, (self.side_px - image.shape[1]) // 2
        right, bottom = -((self.side_px - image.shape[2]) // -2), -((self.side_px - image.shape[1]) // -2)
        for margin in (left, top, right, bottom):
            torch._check(margin >= 0)  # type: ignore[no-untyped-call]
        square = functional.pad(image, (left, right, top, bottom))
        return ((square * RESCALE - self.mean) / self.std).unsqueeze(0)

    def pixels(self, given: Tensor) -> Tensor:
        """What a program is given -> normalized pixels [1, 3, H, H]; pixels that were normalized before are taken as they are."""
        return given if given.dim() == 4 else self.normalize(given)

    @property
    def first_norm(self) -> str:
        """The norm that reads what `tokens` gives."""
        return "tower.pre_norm"

    @property
    def blocks(self) -> list[EncoderLayer]:
        """The tower's layers that are used."""
        return [
            EncoderLayer(
                (f"tower.layers.{number}.norm1", f"tower.layers.{number}.norm2"), layer.attend, layer.transform
            )
            for number, layer in enumerate(self.tower.used)
        ]

    def tokens(self, given: Tensor) -> Tensor:
        """uint8 [3, h, w] or normalized pixels -> class token and patches with their positions [1, P+1, D]."""
        return self.tower.tokens(self.pixels(given))

    def embedded(self, given: Tensor) -> Tensor:
        """uint8 [3, h, w] or normalized pixels -> the same behind the first norm [1, P+1, D]."""
        return self.tower.embed(self.pixels(given))

    def project(self, stream: Tensor) -> Tensor:
        """The stream behind the last layer [1, P+1, D] -> image tokens [1, P, D'], without the class token's."""
        out: Tensor = self.projector(stream[:, 1:])
        return out

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [3, h, w] -> image tokens [1, P, D']."""
        out: Tensor = self.projector(self.tower(self.normalize(images)))
        return out
