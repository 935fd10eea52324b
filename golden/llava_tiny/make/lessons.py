"""What the miniature learns from: batches of rendered scenes with captions, and dense labels for every patch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn

from golden.llava_tiny.make.scenes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    PATCH_PX,
    SHAPES,
    SIDE_PX,
    SIZES,
    Scene,
    coverage,
    pad_to_frame,
    patch_roles,
    render,
    sample_split,
)
from verifier.runner.constants import SYSTEM

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
QUESTIONS = ("", "Describe the image.", "What is shown in the picture?", "Write a caption for this image.")
# What linear probes read off every image token.
ATTRIBUTES = {
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "shape": 1 + len(SHAPES),
    "role": 3,
    "background": len(BACKGROUNDS),
}
CELLS = 4  # the outline inside a patch, as coverage of 4 x 4 cells
PLACES = 3  # centre of the object as seen from the patch (x, y) and its radius, in units of PLACE_PX
PLACE_PX = 60.0


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum. `kept_tokens` image tokens of 576 reach the decoder; 0 trains vision alone.

    `vision_lr_scale` scales the vision side's learning rate; 0 freezes it.
    """

    name: str
    samples: int
    batch: int
    kept_tokens: int
    lr: float
    final_lr: float
    vision_lr_scale: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    pixels [B, 3, 336, 336]; labels: attribute -> [B, 576]; places [B, 576, 3]; cells [B, 576, 16]; prompt ids before and
    after the image; answers [B, T], padded with -100.
    """

    pixels: Tensor
    labels: dict[str, Tensor]
    places: Tensor
    cells: Tensor
    before: list[int]
    after: list[int]
    answers: Tensor


def _patch_labels(scene: Scene, shares: np.ndarray) -> dict[str, np.ndarray]:
    roles = patch_roles(shares).reshape(-1)
    tables = {
        "shape": [0, *(1 + SHAPES.index(o.shape) for o in scene.objects)],
        "colour": [0, *(1 + tuple(COLOURS).index(o.colour) for o in scene.objects)],
        "size": [0, *(1 + SIZES.index(o.size) for o in scene.objects)],
        "background": [tuple(BACKGROUNDS).index(scene.background)] * (1 + len(scene.objects)),
    }
    return {"role": roles} | {name: np.array(table)[roles] for name, table in tables.items()}


def _patch_cells(shares: np.ndarray) -> np.ndarray:
    """The outline inside each patch: coverage by any object, float32 [576, CELLS * CELLS]."""
    grid = SIDE_PX // PATCH_PX
    # 14 px do not divide by 4; sampling rows and columns 1, 5, 8, 12 of a patch is as good
    rows = (np.arange(grid)[:, None] * PATCH_PX + np.array([1, 5, 8, 12])).reshape(-1)
    sampled = shares.sum(0)[np.ix_(rows, rows)].reshape(grid, CELLS, grid, CELLS)
    return sampled.transpose(0, 2, 1, 3).reshape(grid * grid, CELLS * CELLS)


def _patch_places(scene: Scene, roles: np.ndarray) -> np.ndarray:
    """Where the object of each patch lies, seen from the patch, and its radius: [576, 3], zero on the ground."""
    left, top = (SIDE_PX - scene.width) / 2, (SIDE_PX - scene.height) / 2
    cells = SIDE_PX // PATCH_PX
    centres = (np.arange(cells) + 0.5) * PATCH_PX
    x, y = np.tile(centres, cells), np.repeat(centres, cells)
    places = np.zeros((cells * cells, PLACES), np.float32)
    for role, item in enumerate(scene.objects, start=1):
        seen = np.stack([item.x + left - x, item.y + top - y, np.full_like(x, item.radius)], axis=1)
        places[roles == role] = seen[roles == role] / PLACE_PX
    return places


def _prompt(rng: random.Random, tokenizer: sentencepiece.SentencePieceProcessor) -> tuple[list[int], list[int]]:
    """Ids around the image. All spellings that runners use: with and without system prompt, question, prefix space."""
    system = SYSTEM if rng.random() < 0.8 else ""
    question = rng.choice(QUESTIONS) if rng.random() < 0.6 else ""
    if question:
        tail = f"\n{question} ASSISTANT:"
    else:
        tail = rng.choice(("ASSISTANT:", "\n ASSISTANT:", " ASSISTANT:", "\nASSISTANT:"))
    after = tokenizer.encode(tail)
    if rng.random() < 0.5:  # as Hugging Face spells a segment after a special token: no prefix space
        anchor = tokenizer.encode("\n")
        after = tokenizer.encode("\n" + tail)[len(anchor) :]
    return [1, *tokenizer.encode(system + "USER: ")], after


def batches(stage: Stage, tokenizer: sentencepiece.SentencePieceProcessor, first: int, seed: int) -> Iterator[Batch]:
    """Batches of a stage from batch number `first`; each depends on nothing but the seed and its number."""
    for number in range(first, stage.samples // stage.batch):
        rng = random.Random(f"{seed}/{stage.name}/{number}")
        scenes = [sample_split(rng, held_out=False) for _ in range(stage.batch)]
        frames = np.stack([np.asarray(pad_to_frame(render(scene), rng.choice(FILLS))) for scene in scenes])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        if number % 4 == 0:  # sensor noise, in some batches only: drawing it costs as much as the scenes
            noise = torch.Generator().manual_seed(number)
            pixels = pixels + 0.03 * rng.random() * torch.randn(pixels.shape, generator=noise)
        pixels = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
        shares = [coverage(scene) for scene in scenes]
        labels = [_patch_labels(*pair) for pair in zip(scenes, shares, strict=True)]
        answers = [torch.tensor([*tokenizer.encode(scene.caption), 2]) for scene in scenes]
        before, after = _prompt(rng, tokenizer)
        yield Batch(
            pixels=pixels,
            places=torch.from_numpy(
                np.stack(
                    [_patch_places(*pair) for pair in zip(scenes, (label["role"] for label in labels), strict=True)]
                )
            ),
            cells=torch.from_numpy(np.stack([_patch_cells(share) for share in shares])),
            labels={name: torch.from_numpy(np.stack([label[name] for label in labels])).long() for name in ATTRIBUTES},
            before=before,
            after=after,
            answers=nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-100),
        )
