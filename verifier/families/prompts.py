"""How a conversation is spelled, and where images go in it: what a family says of it, and prompts that are made of it.

A conversation is spelled once, as text with marks for images and for the end of an answer. It is encoded whole, as a Hugging Face processor
encodes it, and its ids are cut at the images, as runners feed them: BOS at the very start if the tokenizer puts it there, and never again
(LC#3645 was a second one). What stands behind a mark is the tokenizer's matter (`verifier.families.tokens.tokenizer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from verifier.core.types import Prompt, Segment
from verifier.families.tokens.records import Mark, Part

if TYPE_CHECKING:
    from verifier.families.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """One exchange: a question, how many images stand before it, and the answer if it was given already."""

    question: str
    images: int = 1
    answer: str | None = None


class PromptFormat(Protocol):
    """The conversation of a family."""

    @property
    def default_question(self) -> str:
        """What is asked about an image if nobody says what."""
        ...

    @property
    def before_image(self) -> str:
        """The text before the image of a conversation with one."""
        ...

    @property
    def cue(self) -> str:
        """The text behind the image where nothing is asked."""
        ...

    def after_image(self, question: str) -> str:
        """The text behind the image: the question, and the answer's cue."""
        ...

    def caption_parts(self, question: str) -> tuple[Part, ...]:
        """The conversation with one image and one question."""
        ...

    def dialogue_parts(self, turns: tuple[Turn, ...]) -> tuple[Part, ...]:
        """A conversation of several turns. What a user writes is text, and never a mark."""
        ...


def dialogue_segments(tokenizer: Tokenizer, form: PromptFormat, turns: tuple[Turn, ...]) -> tuple[Segment, ...]:
    """A conversation of several turns as runners feed it."""
    return tokenizer.split_at_images(tokenizer.encode_parts(form.dialogue_parts(turns)))


def caption_prompt(tokenizer: Tokenizer, form: PromptFormat, question: str) -> Prompt:
    """The conversation with one image and one question. An empty question asks as the seed's command does: the cue behind the image,
    encoded as a text of its own, which is what that command's runner does."""
    parts = form.caption_parts(question) if question else (form.before_image, Mark.IMAGE)
    before, _, after = tokenizer.split_at_images(tokenizer.encode_parts(parts))
    assert before is not None and after is not None
    return Prompt(before, after if question else tuple(tokenizer.encode(form.cue)))
