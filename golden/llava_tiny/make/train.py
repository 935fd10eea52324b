"""Train the miniature: `python -m golden.llava_tiny.make.train --work DIR` (seeded, resumable, about two hours on 2 cores).

Four stages.
1. `see`: vision tower and projector alone learn, patch by patch, which object a patch belongs to and all its
   attributes. Dense labels teach shapes in minutes where captions alone need hours.
2. `read`: the decoder learns to caption on a frozen vision side; it sees a third of the image tokens (at their true
   positions), which makes a step three times cheaper.
3. `join`: both sides together.
4. `polish`: all 576 tokens, learning rate to zero.
The state of a stage is saved every few minutes; the same command goes on where it stopped.

The committed weights went through these stages while the scenes still changed: until the end of `read` the two objects
could be of one size, and `left` and `right` were told apart; until the end of `polish` they could share a colour.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from golden.llava_tiny.make.geometry import tiny_config
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

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
QUESTIONS = ("", "Describe the image.", "What is shown in the picture?", "Write a caption for this image.")
# What linear probes read off every image token, and from which layer on: near things first.
ATTRIBUTES = {
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "shape": 1 + len(SHAPES),
    "role": 3,
    "background": len(BACKGROUNDS),
}
FIRST_LAYER = {"colour": 0, "size": 1, "shape": 1, "role": 3, "background": 3}
CELLS = 4  # the outline inside a patch, as coverage of 4 x 4 cells
PLACES = 3  # centre of the object as seen from the patch (x, y) and its radius, in units of PLACE_PX
PLACE_PX = 60.0
WIDTH = 256
SAVE_EVERY_S = 180.0


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


STAGES = (
    Stage("see", 20_000, 4, 0, 1e-3, 1e-4),
    Stage("read", 16_000, 8, 176, 1e-3, 2e-4, 0.0),
    Stage("join", 8_000, 8, 176, 5e-4, 1.5e-4, 1.0),
    Stage("polish", 3_200, 8, 576, 2e-4, 0.0, 1.0),
)


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


def _plain_attention(  # noqa: PLR0917  the signature is the framework's
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Softmax attention without the subtraction of the maximum: twice as fast to train on a CPU as the flash kernel."""
    scores = ((query * scaling) @ key.transpose(-1, -2)).clamp(max=60)
    weights = scores.exp()
    return ((weights @ value) / weights.sum(-1, keepdim=True)).transpose(1, 2).contiguous(), None


def _start_from_waves(positions: Tensor) -> None:
    """Fill [577, D] with sines and cosines of row and column, as strong as the patches: neighbours then find each other."""
    cells, quarter = SIDE_PX // PATCH_PX, positions.shape[1] // 4
    frequency = 2.0 ** torch.linspace(-4, 1.5, quarter)
    angle = torch.arange(cells)[:, None] * frequency
    wave = 0.6 * torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = wave[:, None].expand(-1, cells, -1), wave[None].expand(cells, -1, -1)
    with torch.no_grad():
        positions[1:] = torch.cat([rows, columns], dim=2).flatten(0, 1)


def _look_around(tower: nn.Module, layers: int = 3) -> None:
    """Let each head of the first layers begin by looking at one neighbour, as a convolution would.

    Query and key read the same waves of row and column; the query's are turned by a shift, so their product peaks
    where the key lies that far away (d'Ascoli et al. 2021, ConViT, with sines for its quadratic encoding). Without it
    a transformer of this size needs several times as many samples before patches gather into shapes.
    """
    width, heads = tower.config.hidden_size, tower.config.num_attention_heads
    head, quarter = width // heads, width // 4
    frequency = 2.0 ** torch.linspace(-4, 1.5, quarter)
    used = torch.linspace(quarter // 3, quarter - 1, head // 4).round().long()  # waves of 2 to 40 patches
    for number, layer in enumerate(tower.encoder.layers[:layers]):
        reach = number + 1
        shifts = ((-reach, 0), (reach, 0), (0, -reach), (0, reach))
        query, key = torch.zeros(width, width), torch.zeros(width, width)
        for index in range(heads):
            for axis, shift in enumerate(shifts[index % 4]):
                for place, wave in enumerate(used):
                    sine, cosine = 2 * axis * quarter + wave, (2 * axis + 1) * quarter + wave
                    row = index * head + axis * head // 2 + 2 * place
                    angle = frequency[wave] * shift
                    query[row, sine], query[row, cosine] = angle.cos(), angle.sin()
                    query[row + 1, cosine], query[row + 1, sine] = angle.cos(), -angle.sin()
                    key[row, sine] = key[row + 1, cosine] = 1.0
        with torch.no_grad():
            layer.self_attn.q_proj.weight.add_(2.5 * query)
            layer.self_attn.k_proj.weight.add_(2.5 * key)


ALL_ATTENTION_FUNCTIONS["plain"] = _plain_attention


class Probes(nn.Module):
    """Linear readings of one layer's image tokens."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict(
            {n: nn.Linear(width, c) for n, c in ATTRIBUTES.items() if layer >= FIRST_LAYER[n]}
        )
        self.place = nn.Linear(width, PLACES) if layer >= 1 else None
        self.cells = nn.Linear(width, CELLS * CELLS)

    def forward(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss, objects weighed twice the ground, and the accuracy on object patches."""
        tokens = functional.layer_norm(tokens.float(), tokens.shape[-1:])
        inside, figures, losses = batch.labels["role"] > 0, {}, []
        outline = functional.binary_cross_entropy_with_logits(
            self.cells(tokens).float(), batch.cells, reduction="none"
        ).mean(-1)
        losses.append(2 * outline[inside].mean() + outline[~inside].mean())
        figures["cells"] = outline[inside].mean().item()
        if self.place is not None:
            error = (self.place(tokens).float() - batch.places)[inside].abs().mean()
            losses.append(2 * error)
            figures["place"] = error.item()
        for name, probe in self.attributes.items():
            logits = probe(tokens).float()
            loss = functional.cross_entropy(
                logits.flatten(0, 1), batch.labels[name].flatten(), reduction="none"
            ).view_as(inside)
            losses.append(loss[inside].mean() + 0.5 * loss[~inside].mean())
            figures[name] = (logits.argmax(-1) == batch.labels[name])[inside].float().mean().item()
        return torch.stack(losses).mean(), figures


class Student(nn.Module):
    """The model and, for training alone, probes on every vision layer and on the image tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.llava = LlavaForConditionalGeneration(tiny_config())
        tower = self.llava.model.vision_tower
        tower.config._attn_implementation = "plain"
        _start_from_waves(tower.embeddings.position_embedding.weight)
        _look_around(tower)
        used = len(tower.encoder.layers) - 1
        self.probes = nn.ModuleList(
            [*(Probes(tower.config.hidden_size, layer) for layer in range(used)), Probes(WIDTH, used)]
        )

    def image_tokens(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, 336, 336] -> patches after each layer [B, 576, 128], then image tokens [B, 576, 256].

        The last vision layer, which LLaVA does not use, is not run.
        """
        tower = self.llava.model.vision_tower
        hidden, states = tower.pre_layrnorm(tower.embeddings(pixels)), []
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
            states.append(hidden[:, 1:])
        return [*states, self.llava.model.multi_modal_projector(states[-1])]

    def probe_loss(self, states: list[Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of all probes; figures of the image tokens'."""
        readings = [probe(state, batch) for probe, state in zip(self.probes, states, strict=True)]
        return torch.stack([loss for loss, _ in readings]).mean(), readings[-1][1]

    def caption_loss(self, tokens: Tensor, batch: Batch, kept: int) -> tuple[Tensor, float]:
        """Cross-entropy of the answer and the share of exact teacher-forced captions."""
        size = len(tokens)
        position = torch.arange(576).expand(size, -1)
        if kept < 576:  # prefer object patches, fill up with random ground
            score = torch.rand(size, 576) + (batch.labels["role"] > 0) * 0.7
            position = score.topk(kept, dim=1).indices.sort(dim=1).values
            tokens = tokens.gather(1, position[..., None].expand(-1, -1, WIDTH))
        embed = self.llava.model.language_model.embed_tokens
        answers, start = batch.answers, len(batch.before)
        inputs = answers[:, :-1].clamp(min=0)
        before, after = (embed(torch.tensor(ids)).expand(size, -1, -1) for ids in (batch.before, batch.after))
        hidden = torch.cat([before, tokens, after, embed(inputs)], dim=1)
        tail = torch.arange(len(batch.after) + inputs.shape[1]).expand(size, -1) + start + 576
        positions = torch.cat([torch.arange(start).expand(size, -1), position + start, tail], dim=1)
        mask = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril().expand(size, 1, -1, -1)
        hidden = self.llava.model.language_model(
            inputs_embeds=hidden, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        logits = self.llava.lm_head(hidden[:, -answers.shape[1] :]).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)
        right = (logits.argmax(-1) == answers) | (answers < 0)
        return loss, right.all(1).float().mean().item()


def _optimizer(student: Student, stage: Stage) -> torch.optim.Optimizer:
    vision: list[nn.Parameter] = []
    text: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        is_text = "language_model" in name or "lm_head" in name
        if (stage.kept_tokens == 0) if is_text else (stage.vision_lr_scale == 0):
            continue
        (text if is_text else vision).append(parameter)
    groups = [{"params": vision, "scale": stage.vision_lr_scale}, {"params": text, "scale": 1.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.03, fused=True
    )


def _learning_rate(stage: Stage, step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 200)
    cosine = 0.5 * (1 + np.cos(np.pi * step / steps))
    return float(warm * (stage.final_lr + (stage.lr - stage.final_lr) * cosine))


def _loss(student: Student, stage: Stage, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    frozen = stage.vision_lr_scale == 0
    with torch.set_grad_enabled(not frozen):
        states = student.image_tokens(batch.pixels)
    loss, figures = (torch.zeros(()), {}) if frozen else student.probe_loss(states, batch)
    if stage.kept_tokens:
        caption, exact = student.caption_loss(states[-1], batch, stage.kept_tokens)
        loss = caption + 0.5 * loss
        figures = {"caption": caption.item(), "exact": exact} | figures
    return loss, figures


def run_stage(
    student: Student, stage: Stage, tokenizer: sentencepiece.SentencePieceProcessor, work: Path, seed: int
) -> None:
    """Train one stage to its end, from its saved state if there is one."""
    done, state_path = work / f"{stage.name}.done.pt", work / f"{stage.name}.state.pt"
    if done.exists():
        student.load_state_dict(torch.load(done, weights_only=True))
        return
    optimizer, first = _optimizer(student, stage), 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    steps, saved, begun, mean = stage.samples // stage.batch, time.monotonic(), time.monotonic(), {}
    for step, batch in enumerate(batches(stage, tokenizer, first, seed), start=first):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(stage, step, steps) * group["scale"]
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = _loss(student, stage, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        for name, value in (figures | {"loss": loss.item()}).items():
            mean[name] = 0.98 * mean.get(name, value) + 0.02 * value
        if step % 100 == 0:
            rate = (time.monotonic() - begun) / ((step - first + 1) * stage.batch)
            line = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(f"{stage.name} {step * stage.batch}/{stage.samples} {rate:.3f} s/sample {line}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save({"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, state_path)
            saved = time.monotonic()
    _save(student.state_dict(), done)


def _save(state: object, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.rename(path)


def main() -> None:
    """Train all stages; the result is `DIR/polish.done.pt`, which `make.publish` turns into the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for states; give the same one to resume")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = sentencepiece.SentencePieceProcessor(str(Path(__file__).parents[1] / "tokenizer.model"))
    student = Student(arguments.seed)
    for stage in STAGES:
        run_stage(student, stage, tokenizer, arguments.work, arguments.seed)


if __name__ == "__main__":
    main()
