"""Constants of a LLaVA program that no tensor of the checkpoint holds: they follow from its configuration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.families.conventions import DECODER, ENCODER
from verifier.families.geometry import Geometry, TextGeometry
from verifier.families.llava.geometry import CLIP_MEAN, CLIP_STD
from verifier.families.llava.text import inverse_frequencies, rope_tables
from verifier.families.llava.vision import QUICK_GELU, RESCALE

LONGEST_TABLE = 1 << 17
"""Positions of a RoPE table, at most: a file may claim any."""
FILLS = ((0.0, "0"), (-math.inf, "minus infinity"), (torch.finfo(torch.float32).min, "the least fp32 number"))
"""What an attention mask adds to the score of a key that is seen, and to that of one that is not."""
Candidate = tuple[Tensor, str]


def derived_constants(
    geometry: Geometry, role: str, method: str, shape: tuple[int, ...], *, order: int
) -> list[Candidate]:
    """What a constant may be by what it is used for, and what that is in words; nothing for a role that nothing explains.

    `order` is its number among the constants of its role: cosines and sines take turns.
    """
    if role == "epsilon":
        return [(torch.full(shape, geometry.text.norm_eps), "rms_norm_eps of config.json")]
    if role == "rope":
        return _tables(geometry.text, shape, order)
    if role == "mask":
        return [(torch.ones(shape, dtype=torch.bool).tril(), "a causal mask")] if len(shape) > 1 else []
    elements = math.prod(shape)
    if role == "positions":
        return [(torch.arange(elements), "positions from 0 on")] if elements <= LONGEST_TABLE else []
    if role == "fill" and elements == 1:
        return [(torch.tensor(number), what) for number, what in FILLS]
    if method == DECODER and elements == geometry.text.head_dim // 2:
        return [(inverse_frequencies(geometry.text), "RoPE's inverse frequencies of rope_theta and head_dim")]
    if role == "factor" and elements == 1:
        return _factors(geometry, method)
    return [one for one in _of_pixels(role) if one[0].numel() == elements] if method == ENCODER else []


def _tables(text: TextGeometry, shape: tuple[int, ...], order: int) -> list[Candidate]:
    """Of as many positions as the constant has, for whole heads or for their halves, which are alike."""
    if len(shape) != 2 or shape[0] > LONGEST_TABLE or shape[1] not in (text.head_dim, text.head_dim // 2):
        return []
    table = rope_tables(text, max_context_len=shape[0])[order % 2]
    return [(table[:, : shape[1]], "the RoPE table of rope_theta and head_dim")]


def _factors(geometry: Geometry, method: str) -> list[Candidate]:
    vision, text = geometry.vision, geometry.text
    head_dim = text.head_dim if method == DECODER else vision.width // vision.heads
    known = [(QUICK_GELU, f"QuickGELU's {QUICK_GELU}"), (RESCALE, "1 / 255")] if method == ENCODER else []
    known += [(head_dim**-0.5, "head_dim^-1/2"), (head_dim**-0.25, "head_dim^-1/4")]
    known += [] if method == ENCODER else [(1.0, "RoPE's attention scaling, 1")]
    return [(torch.tensor(number), what) for number, what in known]


def _of_pixels(role: str) -> list[Candidate]:
    """The normalization of pixels from 0 to 1, or of bytes."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    known = {
        "mean": [(mean, "CLIP's image mean"), (255 * mean, "CLIP's image mean times 255")],
        "std": [(std, "CLIP's image std"), (255 * std, "CLIP's image std times 255")],
        "factor": [(1 / std, "1 / CLIP's image std"), (1 / (255 * std), "1 / (255 times CLIP's image std)")],
    }
    return known.get(role, [])
