"""The prompt of LLaVA-1.5 and where the image goes in it.

A conversation is spelled once, as text with marks for images and for the end of an answer. It is encoded whole, as a Hugging Face processor
encodes it, and its ids are cut at the images, as runners feed them: BOS at the very start if the tokenizer puts it there, and never again
(LC#3645 was a second one). What stands behind a mark is the tokenizer's matter (`verifier.families.tokens.tokenizer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from verifier.core.types import Prompt, Segment
from verifier.families.tokens.records import Mark, Part
from verifier.runner import constants

if TYPE_CHECKING:
    from verifier.families.tokens.tokenizer import Tokenizer

SYSTEM, BEFORE_IMAGE = constants.SYSTEM, constants.BEFORE_IMAGE
DEFAULT_QUESTION = "Describe the image."
SEED_CUE = "ASSISTANT:"


@dataclass(frozen=True)
class Turn:
    """One exchange: a question, how many images stand before it, and the answer if it was given already."""

    question: str
    images: int = 1
    answer: str | None = None


def after_image(question: str) -> str:
    """What follows the image in the text: a newline, the question, and the answer's cue."""
    return f"\n{question} ASSISTANT:"


def caption_parts(question: str = DEFAULT_QUESTION) -> tuple[Part, ...]:
    """The conversation with one image and one question."""
    return (BEFORE_IMAGE, Mark.IMAGE, after_image(question))


def dialogue_parts(turns: tuple[Turn, ...]) -> tuple[Part, ...]:
    """A conversation of several turns. What a user writes is text, a literal `<image>` or `</s>` too."""
    parts: list[Part] = [SYSTEM]
    for turn in turns:
        parts.append("USER: ")
        for _ in range(turn.images):
            parts += [Mark.IMAGE, "\n"]
        parts.append(f"{turn.question} ASSISTANT:")
        if turn.answer is not None:
            parts += [f" {turn.answer}", Mark.END]
    return tuple(parts)


def dialogue_segments(tokenizer: Tokenizer, turns: tuple[Turn, ...]) -> tuple[Segment, ...]:
    """The same conversation as runners feed it."""
    return tokenizer.split_at_images(tokenizer.encode_parts(dialogue_parts(turns)))


def caption_prompt(tokenizer: Tokenizer, question: str = DEFAULT_QUESTION) -> Prompt:
    """The LLaVA-1.5 conversation with one image and one question. An empty question asks as the seed's command does: `ASSISTANT:`
    behind the image, encoded as a text of its own, which is what that command's runner does."""
    parts = caption_parts(question) if question else (BEFORE_IMAGE, Mark.IMAGE)
    before, _, after = tokenizer.split_at_images(tokenizer.encode_parts(parts))
    assert before is not None and after is not None
    return Prompt(before, after if question else tuple(tokenizer.encode(SEED_CUE)))
