"""What an fp32 definition answers to pictures: forced along a golden answer, or greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor

from verifier.core.compare import top2_margin
from verifier.core.errors import CheckpointError
from verifier.core.progress import OnProgress, no_progress
from verifier.families.definition import Caches, Definition
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
    """The fp32 greedy answer up to and with the first token of `ends`, or `room` tokens, and the top-2 margin in logits at each."""
    (answered,) = greedy_answers(definition, [sample], ends=ends, room=room, drafts=[draft])
    return answered.favoured, tuple(float(margin) for margin in top2_margin(answered.logits))


def greedy_answers(
    definition: Definition,
    samples: Sequence[Sample],
    *,
    ends: tuple[int, ...],
    room: int,
    drafts: Sequence[Sequence[int]],
    on_progress: OnProgress = no_progress,
) -> list[Answered]:
    """The fp32 greedy answers to some samples, all in one pass through the layers for each token that is still open: a streamed layer is read
    once for all of them. The favoured tokens of the logits are the answers, up to and with the first token of `ends`, or `room` tokens.

    A draft saves passes, and changes nothing: all its tokens are scored at once, and as many are taken as are the favoured ones
    (speculative decoding, Leviathan et al. 2023, with temperature 0). Behind the first that is not, the favoured token takes its place and
    what is left of the draft is proposed again. An id that is no token of the vocabulary ends a draft.
    """
    rows = [_Answer.begin(definition, s, draft, room) for s, draft in zip(samples, drafts, strict=True)]
    while waiting := [row for row in rows if not row.over]:
        on_progress("tokens of the answers", sum(len(row.ids) for row in rows), room * len(rows))
        hidden = definition.hidden_each(
            [row.embeddings for row in waiting],
            starts=[row.start for row in waiting],
            caches=[row.caches for row in waiting],
        )
        for row, states in zip(waiting, hidden, strict=True):
            row.accept(definition, states[0], ends, room)
    return [row.answered() for row in rows]


@dataclass
class _Answer:
    """An answer in the making: what goes into the next pass, from position `start` on, and what came of the earlier ones. `proposed` are the
    tokens at the end of `embeddings` that are not known to be right."""

    vision: Tensor
    prompt_tokens: int
    embeddings: Tensor
    start: int
    proposed: list[int]
    caches: Caches
    ids: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    over: bool = False

    @classmethod
    def begin(cls, definition: Definition, sample: Sample, draft: Sequence[int], room: int) -> _Answer:
        """The prompt with its image, and the draft behind it."""
        known = range(definition.embedding.shape[0])
        proposed = list(takewhile(lambda token: token in known, draft))[: room - 1]
        vision = _tokens_in(definition, sample)
        prompt = splice(definition, sample, vision, ())
        embeddings = torch.cat([prompt, definition.embed(torch.tensor([proposed], dtype=torch.int64))], dim=1)
        return cls(vision, prompt.shape[1], embeddings, 0, proposed, definition.fresh_caches())

    def accept(self, definition: Definition, states: Tensor, ends: tuple[int, ...], room: int) -> None:
        """Take the favoured tokens of a pass [S, D] as far as the proposal agrees with them, and one beyond. Raises `CheckpointError` if the
        logits are not numbers."""
        states = states[-1 - len(self.proposed) :]
        with torch.no_grad():
            scored = definition.decoder.output(states)
        if not bool(torch.isfinite(scored).all()):
            raise CheckpointError(
                "the fp32 reference gives logits that are not finite: it has no answer",
                expected="finite numbers",
                fix="check the checkpoint's weights and its config.json",
            )
        for place, logits in enumerate(scored):
            self.ids.append(int(logits.argmax()))
            self.logits.append(logits)
            self.hidden.append(states[place])
            if self.ids[-1] in ends or len(self.ids) == room:
                self.over = True
                return
            if self.proposed[place : place + 1] != self.ids[-1:]:
                break
        self.proposed = self.proposed[place + 1 :]
        self.start = self.prompt_tokens + len(self.ids) - 1
        self.embeddings = definition.embed(torch.tensor([[self.ids[-1], *self.proposed]]))

    def answered(self) -> Answered:
        """What a reference says of a sample."""
        return Answered(self.vision[0].numpy(), torch.stack(self.logits).numpy(), torch.stack(self.hidden).numpy())
