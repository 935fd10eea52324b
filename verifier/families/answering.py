"""What an fp32 definition answers to pictures: forced along a golden answer, or greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifier.core.compare import top2_margin
from verifier.families.definition import Definition
from verifier.families.family import Family
from verifier.families.pixels.image_file import read_image
from verifier.families.prompts import caption_prompt
from verifier.families.samples import Answered, Sample
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import GoldenImage


def load_sample(golden: GoldenImage, tokenizer: Tokenizer, family: Family, *, square: bool = False) -> Sample:
    """Read and preprocess a golden image; `square` for a program that takes no other pictures. Raises `ImageError`."""
    image = family.pixels.prepare(read_image(golden.path), square=square)
    return Sample(golden, image.numpy(), caption_prompt(tokenizer, family.prompt, golden.question))


def splice(definition: Definition, sample: Sample, vision: Tensor, answer: tuple[int, ...]) -> Tensor:
    """Embeddings [1, S, D] of prompt, image and answer (without its last token)."""
    before, after = (definition.embed(torch.tensor([ids])) for ids in (sample.prompt.before, sample.prompt.after))
    forced = [definition.embed(torch.tensor([answer[:-1]]))] if len(answer) > 1 else []
    return torch.cat([before, vision, after, *forced], dim=1)


def image_tokens(definition: Definition, sample: Sample) -> Tensor:
    """Image tokens [1, P, D] of a sample's image."""
    return definition.image_tokens(torch.from_numpy(sample.image))


def _tokens_in(definition: Definition, sample: Sample) -> Tensor:
    """Image tokens [1, P, D] of what a reference takes in: a sample's normalized pixels if it has some, else its image."""
    if sample.pixels is None:
        return image_tokens(definition, sample)
    return definition.tokens_of_pixels(torch.from_numpy(sample.pixels))


def answer_samples(definition: Definition, samples: Sequence[Sample]) -> list[Answered]:
    """Teacher-forced fp32 references, all samples together layer by layer."""
    visions = [_tokens_in(definition, sample) for sample in samples]
    forced = [splice(definition, s, vision, s.golden.ids) for s, vision in zip(samples, visions, strict=True)]
    states = definition.hidden_each(forced, starts=[0] * len(forced))
    made = []
    for sample, vision, state in zip(samples, visions, states, strict=True):
        hidden = state[:, -len(sample.golden.ids) :]
        with torch.no_grad():
            logits = definition.decoder.output(hidden)
        made.append(Answered(vision[0].numpy(), logits[0].numpy(), hidden[0].numpy()))
    return made


def with_margins(sample: Sample, answered: Answered) -> Sample:
    """A sample whose golden answer was recorded for another prompt, with fp32's margins for this one."""
    margins = tuple(float(margin) for margin in top2_margin(answered.logits))
    return replace(sample, golden=replace(sample.golden, margins=margins))


def greedy_answer(
    definition: Definition, sample: Sample, *, ends: tuple[int, ...], room: int, draft: Sequence[int] = ()
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The fp32 greedy answer up to and with the first token of `ends`, or `room` tokens, and the top-2 margin in logits at each.

    A `draft` saves passes, and changes nothing: all its tokens are scored at once, and as many are taken as are the favoured ones
    (speculative decoding, Leviathan et al. 2023, with temperature 0). What follows the first that is not goes token by token.
    """
    proposed = list(draft)[: room - 1]
    prompt = splice(definition, sample, image_tokens(definition, sample), ())
    embeddings = torch.cat([prompt, definition.embed(torch.tensor([proposed], dtype=torch.int64))], dim=1)
    start = 0
    ids: list[int] = []
    margins: list[float] = []
    while True:
        hidden, _ = definition.hidden(embeddings, start=start)
        with torch.no_grad():
            scored = definition.decoder.output(hidden[0, -1 - len(proposed) :])
        for logits in scored:
            top = logits.topk(2)
            ids.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            if ids[-1] in ends or len(ids) == room:
                return tuple(ids), tuple(margins)
            if ids != proposed[: len(ids)]:
                break
        proposed = []
        start = prompt.shape[1] + len(ids) - 1
        embeddings = definition.embed(torch.tensor([[ids[-1]]]))
