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
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn

from golden.llava_tiny.make.lessons import Batch, Stage, batches
from golden.llava_tiny.make.student import Student

SAVE_EVERY_S = 180.0

STAGES = (
    Stage("see", 20_000, 4, 0, 1e-3, 1e-4),
    Stage("read", 16_000, 8, 176, 1e-3, 2e-4, 0.0),
    Stage("join", 8_000, 8, 176, 5e-4, 1.5e-4, 1.0),
    Stage("polish", 3_200, 8, 576, 2e-4, 0.0, 1.0),
)


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
