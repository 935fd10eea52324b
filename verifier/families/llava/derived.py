"""Constants of a LLaVA program that no tensor of the checkpoint holds: they follow from its configuration, or from the recipe."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.families.conventions import ENCODER
from verifier.families.geometry import Geometry
from verifier.families.llava.geometry import CLIP_MEAN, CLIP_STD
from verifier.families.llava.text import rope_tables
from verifier.families.llava.vision import QUICK_GELU, RESCALE


def derived_constant(
    geometry: Geometry,
    role: str,
    method: str,
    shape: tuple[int, ...],
    *,
    order: int,
    max_context_len: int,
    stored: bool,
) -> tuple[Tensor, str] | None:
    """The value of a constant by what it is used for, and what it is in words; None for a role that nothing explains.

    `order` is its number among the constants of its role: cosines and sines take turns. `stored` says that it is quantized: QuickGELU's factor
    is, 1 / 255 is not.
    """
    if role == "epsilon":
        return torch.full(shape, geometry.text.norm_eps), "rms_norm_eps of config.json"
    if role in ("mean", "std"):
        values = torch.tensor(CLIP_MEAN if role == "mean" else CLIP_STD).view(3, 1, 1)
        return values, f"CLIP's image {role}"
    if role == "rope":
        table = rope_tables(geometry.text, max_context_len=max_context_len)[order % 2]
        return (table, "the RoPE table of rope_theta and head_dim") if table.shape == shape else None
    if role == "mask":
        return torch.ones(shape, dtype=torch.bool).tril(), "a causal mask"
    if role == "factor" and method == ENCODER and shape == ():
        return (torch.tensor(QUICK_GELU), f"QuickGELU's {QUICK_GELU}") if stored else (torch.tensor(RESCALE), "1 / 255")
    return None
