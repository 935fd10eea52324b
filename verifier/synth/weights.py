"""Tensors of a made-up LLaVA, each from the seed and its own name, with the statistics that make quantization hard.

What trained weights have and Gaussian ones lack, and how it is made here:
- heavy tails: z + 0.05 z^3 has a kurtosis of 4.5, and of 7 with the gains below (measured; a Gaussian has 3);
- rows and columns of unequal size: log-normal gains, spread 0.25;
- outlier channels (Dettmers et al. 2022, LLM.int8()): a few channels of the residual stream are an order of magnitude larger than
  the others, written by the embedding and by what adds to the stream, with small norm gains behind them;
- confident predictions: the row of the head for token `following[t]` points along the embedding of `t`, so that the most likely
  token leads by more than 4-bit noise, as in a trained model, and an answer ends.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from verifier.families.geometry import Geometry

CUBE = 0.05
CUBE_NORM = 1 / math.sqrt(1 + 6 * CUBE + 15 * CUBE**2)
GAIN_SPREAD = 0.25
OUTLIERS, OUTLIER_GAIN = 0.0015, 12.0
STREAM_STD = 0.05
"""Standard deviation of image tokens, and of the embeddings of a model with two layers."""
BRANCH = 0.3
"""What each branch adds to the stream, in that standard deviation."""
NORM_GAIN = 0.5
LEADING, NOISE = 30.0, 1.2
"""Logit of the following token if the stream were its embedding alone, and standard deviation of all other logits."""


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _gains(count: int, generator: torch.Generator) -> Tensor:
    return torch.exp(GAIN_SPREAD * torch.randn(count, generator=generator))


def _heavy(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Heavy-tailed weights with rows and columns of unequal size, in place: one fp32 tensor and one of its squares."""
    made = torch.randn(shape, generator=generator)
    made.mul_(made.square().mul_(CUBE).add_(1.0))
    rows, columns = made.shape[0], made[0].numel()
    made.view(rows, columns).mul_(_gains(columns, generator)).mul_((std * CUBE_NORM) * _gains(rows, generator)[:, None])
    return made


class Maker:
    """Makes any tensor of a checkpoint by its name in Hugging Face's own spelling (transformers 5), in any order."""

    def __init__(self, geometry: Geometry, *, seed: int, following: dict[int, int]) -> None:
        self.geometry = geometry
        self.seed = seed
        self.following = following

    def _outliers(self, width: int) -> Tensor:
        """Gain of each channel of a residual stream [D]: 1, and `OUTLIER_GAIN` for a few, at least one."""
        generator = _generator(self.seed, f"outliers of {width}")
        gains = torch.ones(width)
        chosen = torch.randperm(width, generator=generator)[: max(1, round(OUTLIERS * width))]
        gains[chosen] = OUTLIER_GAIN
        return gains

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """fp32, of `shape`."""
        generator = _generator(self.seed, name)
        if "norm" in name or "layrnorm" in name:
            return self._norm(name, shape, generator)
        if name.endswith("bias"):
            return 0.02 * torch.randn(shape, generator=generator)
        if name.endswith("embed_tokens.weight"):
            return self._embedding(shape)
        if name.endswith("lm_head.weight"):
            return self._head(shape, generator)
        if name.endswith("patch_embedding.weight"):
            return _heavy(shape, 0.5 / math.sqrt(math.prod(shape[1:])), generator)
        if name.endswith(("class_embedding", "position_embedding.weight")):
            return 0.3 * torch.randn(shape, generator=generator)
        return self._linear(name, shape, generator)

    def _norm(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith("bias"):
            return 0.05 * torch.randn(shape, generator=generator)
        text = "vision_tower" not in name
        # what is large in the stream is made small behind it, as training does, but for a rest
        shrunk = self._outliers(shape[0]).pow(-0.5) if text else torch.ones(shape)
        return (NORM_GAIN if text else 1.0) * _gains(shape[0], generator) * shrunk

    def _linear(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        rows, columns = shape
        if "vision_tower" in name:
            added = 0.5 if name.endswith(("out_proj.weight", "fc2.weight")) else 1.0
            return _heavy(shape, added / math.sqrt(columns), generator)
        if "projector" in name:
            # image tokens are as large as those of text in a shallow model
            return _heavy(shape, (2.5 * STREAM_STD if "linear_2" in name else 1.0) / math.sqrt(columns), generator)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            made = _heavy(shape, 2 * BRANCH * STREAM_STD / math.sqrt(columns), generator)
            return made.mul_(self._outliers(rows)[:, None])
        return _heavy(shape, 1 / (NORM_GAIN * math.sqrt(columns)), generator)

    def _embedding(self, shape: tuple[int, ...]) -> Tensor:
        """Rows of tokens; made again for the head. They grow with the depth as the sum of all branches does: what follows a token must
        still lead behind the last layer (by 13 to 16 behind 32; without that, by 0.1)."""
        generator = _generator(self.seed, "embedding")
        depth = math.sqrt(self.geometry.text.layers / 2)
        made = torch.randn(shape, generator=generator).mul_(STREAM_STD * depth)
        return made.mul_(self._outliers(shape[1]))

    def _head(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Rows of the head: noise, and what follows a token leads behind it."""
        made = _heavy(shape, NOISE / (NORM_GAIN * math.sqrt(shape[1])), generator)
        embedding = self._embedding(shape)
        quiet = self._outliers(shape[1]) == 1.0  # a channel that is large for every token tells none apart
        for token, following in self.following.items():
            row = embedding[token] * quiet
            length = float(row.norm()) * NORM_GAIN * math.sqrt(shape[1])
            made[following] = 0.1 * made[following] + (LEADING / length) * row
        return made
