"""Prompts as they are fed, beside the ids that transformers and a second encoder make of them, and beside the checkpoint's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.core.errors import CheckpointError, UsageError
from verifier.core.types import Missing, Segment
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.driver import Caller, Script, splice
from verifier.families.prompts import PromptFormat, Turn, dialogue_segments
from verifier.families.tokens.chat_template import find_template, render
from verifier.families.tokens.records import Mark
from verifier.families.tokens.records import Part as TextPart
from verifier.runner.protocol import ArgmaxOf, Array, Call, OutputOf

if TYPE_CHECKING:
    from pathlib import Path

    from verifier.families.tokens.tokenizer import Tokenizer

PROMPTS: dict[str, tuple[Turn, ...]] = {
    "empty": (Turn(""),),
    "unicode": (Turn("Was ist das? 日本語 🙂 é\u0301 \u200d"),),
    "many newlines": (Turn("\n\n\nWhat\n\n\nis it?\n\n\n"),),
    "literal <image>": (Turn("What does <image> or </s> or <s> mean?"),),
    "text only": (Turn("Hello there, who are you?", images=0),),
    "two turns": (Turn("What is it?", answer="A cat."), Turn("And why?", images=0)),
    "two images": (Turn("Compare the two.", images=2),),
    "to the limit": (),
}
"""Prompts beside the golden ones. The last one is made as long as the program holds."""
LONG = "What is it? "


@dataclass(frozen=True)
class ReferenceIds:
    """Ids of one prompt by transformers, and by the second encoder, each with BOS as the tokenizer puts it."""

    transformers: tuple[int, ...]
    second: tuple[int, ...]


@dataclass(frozen=True)
class Dialogue:
    """A prompt as it is fed: the first `question`, the number of `images`, `segments` of ids with None where an image goes, and their `text`
    without the images.

    `chunks` are (start position, tokens) of the decoder's calls, `shown` the calls whose output stands where an image goes, `encoders` the
    calls of the encoder; `refusal` says in their place why the driver makes none.
    """

    question: str
    images: int
    segments: tuple[Segment, ...]
    text: str
    reference: ReferenceIds | Missing
    chunks: tuple[tuple[int, int], ...] = ()
    shown: tuple[int, ...] = ()
    encoders: tuple[int, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class PromptEvidence:
    """Reference ids of the golden prompts by their question, and unusual prompts by their name in `PROMPTS`. `second` names the second encoder;
    the program holds `limit` tokens."""

    second: str
    limit: int
    captions: dict[str, ReferenceIds | Missing]
    dialogues: dict[str, Dialogue]


@dataclass(frozen=True)
class TemplatePrompt:
    """The prompt that is verified, the one that the chat template `spells` for the same question, and the file that the template stands in;
    `source` is "" if the checkpoint has none."""

    verified: str
    spells: str = ""
    source: str = ""


def measure_prompts(
    tokenizer: Tokenizer, form: PromptFormat, questions: Iterable[str], caller: Caller, *, patches: int, limit: int
) -> PromptEvidence:
    """Golden prompts by both references, unusual prompts as they are fed to a program that holds `limit` tokens, `patches` of them for a picture.
    Raises `CheckpointError` for a prompt that the tokenizer cannot make."""
    captions = {question: _caption(tokenizer, form, question) for question in dict.fromkeys(questions)}
    dialogues = {
        name: _dialogue(tokenizer, form, turns or _longest(tokenizer, form, patches, limit), caller, patches, limit)
        for name, turns in PROMPTS.items()
    }
    return PromptEvidence(tokenizer.second.name, limit, captions, dialogues)


def _caption(tokenizer: Tokenizer, form: PromptFormat, question: str) -> ReferenceIds | Missing:
    """The seed's prompt, without a question, has no Hugging Face spelling: its cue is a text of its own, behind the image."""
    if question:
        return _reference(tokenizer, form.caption_parts(question))
    cue = tokenizer.second_ids((form.cue,))
    second = (*_front(tokenizer), *tokenizer.second_ids((form.before_image, Mark.IMAGE)), *cue)
    return ReferenceIds(second, second)


def _front(tokenizer: Tokenizer) -> tuple[int, ...]:
    return (tokenizer.bos_id,) if tokenizer.adds_bos else ()


def _reference(tokenizer: Tokenizer, parts: tuple[TextPart, ...]) -> ReferenceIds | Missing:
    """Ids by both references. A text that spells a special token is no text to transformers: then the second encoder speaks for both. Missing
    if transformers cannot load the files."""
    try:
        second = (*_front(tokenizer), *tokenizer.second_ids(parts))
        if not all(tokenizer.is_plain(part) for part in parts if isinstance(part, str)):
            return ReferenceIds(second, second)
        return ReferenceIds(tuple(tokenizer.reference.encode(tokenizer.spelled(parts))), second)
    except CheckpointError as error:
        return Missing(error.one_line, "verifier")


def tokens_of(segments: Iterable[Segment], patches: int) -> int:
    """Positions that a prompt takes."""
    return sum(patches if segment is None else len(segment) for segment in segments)


def _longest(tokenizer: Tokenizer, form: PromptFormat, patches: int, limit: int) -> tuple[Turn, ...]:
    """One question of as many words as the program holds, to the token if the tokenizer allows it."""

    def fits(text: str) -> bool:
        return tokens_of(dialogue_segments(tokenizer, form, (Turn(text),)), patches) <= limit

    words = next(count for count in range(limit) if not fits(LONG * (count + 1)))
    text = LONG * words
    while fits(text + "a "):
        text += "a "
    return (Turn(text),)


def _dialogue(  # noqa: PLR0917
    tokenizer: Tokenizer, form: PromptFormat, turns: tuple[Turn, ...], caller: Caller, patches: int, limit: int
) -> Dialogue:
    """A prompt as the driver feeds it."""
    segments, images = dialogue_segments(tokenizer, form, turns), sum(turn.images for turn in turns)
    text = tokenizer.decode([id for segment in segments if segment is not None for id in segment])
    reference = _reference(tokenizer, form.dialogue_parts(turns))
    script, frame = Script(caller), (3, caller.pixels.side_px, caller.pixels.side_px)
    pictures = [np.full(frame, number, np.uint8) for number in range(images)]
    try:
        splice(script, segments, pictures, patches=patches, limit=limit)
    except UsageError as error:
        return Dialogue(turns[0].question, images, segments, text, reference, refusal=str(error.got))
    fed = [call.inputs[0] for call in script.calls if call.method == DECODER]
    return Dialogue(
        turns[0].question,
        images,
        segments,
        text,
        reference,
        chunks_of(script.calls, patches=patches),
        tuple(c.call for c in fed if isinstance(c, OutputOf) and script.calls[c.call].method == ENCODER),
        tuple(at for at, call in enumerate(script.calls) if call.method == ENCODER),
    )


def fed_ids(calls: Iterable[Call]) -> list[int]:
    """Ids of all token_embedding calls, in order."""
    return [int(i) for call in calls if call.method == EMBEDDING for i in _array(call.inputs[0]).reshape(-1)]


def chunks_of(calls: Sequence[Call], *, patches: int, offset: int = 0) -> tuple[tuple[int, int], ...]:
    """(start position, tokens) of every text_decoder call; `offset` calls were made before these."""
    chunks = []
    for call in calls:
        if call.method != DECODER:
            continue
        source = call.inputs[0]
        if isinstance(source, OutputOf):
            producer = calls[source.call - offset]
            tokens = patches if producer.method == ENCODER else _array(producer.inputs[0]).size
        else:
            tokens = _array(source).shape[1]
        chunks.append((int(_array(call.inputs[1])[0]), int(tokens)))
    return tuple(chunks)


def _array(value: Array | OutputOf | ArgmaxOf) -> Array:
    if isinstance(value, (OutputOf, ArgmaxOf)):
        raise TypeError("an id input is an array")
    return value


def measure_template(folder: Path, tokenizer: Tokenizer, form: PromptFormat) -> TemplatePrompt | Missing:
    """The prompt by the chat template of a checkpoint's folder. Missing if the template cannot be read or rendered."""
    verified = tokenizer.spelled(form.caption_parts(form.default_question))
    try:
        template = find_template(folder)
        if template is None:
            return TemplatePrompt(verified)
        spells = render(template, tokenizer, form.default_question).removeprefix(tokenizer.piece(tokenizer.bos_id))
    except CheckpointError as error:
        return Missing(error.one_line, "verifier")
    return TemplatePrompt(verified, spells, template.source)
