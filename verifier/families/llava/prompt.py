"""The prompt of LLaVA-1.5 and where the image goes in it: see `verifier.families.prompts`."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.families.prompts import Turn
from verifier.families.tokens.records import Mark, Part
from verifier.runner import constants

DEFAULT_QUESTION = "Describe the image."


@dataclass(frozen=True)
class LlavaPrompt:
    """Vicuna's conversation, with a newline behind an image."""

    system: str = constants.SYSTEM
    before_image: str = constants.BEFORE_IMAGE
    default_question: str = DEFAULT_QUESTION
    cue: str = "ASSISTANT:"

    def after_image(self, question: str) -> str:
        """What follows the image in the text: a newline, the question, and the answer's cue."""
        return f"\n{question} {self.cue}"

    def caption_parts(self, question: str = DEFAULT_QUESTION) -> tuple[Part, ...]:
        """The conversation with one image and one question."""
        return (self.before_image, Mark.IMAGE, self.after_image(question))

    def dialogue_parts(self, turns: tuple[Turn, ...]) -> tuple[Part, ...]:
        """A conversation of several turns. What a user writes is text, a literal `<image>` or `</s>` too."""
        parts: list[Part] = [self.system]
        for turn in turns:
            parts.append("USER: ")
            for _ in range(turn.images):
                parts += [Mark.IMAGE, "\n"]
            parts.append(f"{turn.question} {self.cue}")
            if turn.answer is not None:
                parts += [f" {turn.answer}", Mark.END]
        return tuple(parts)


PROMPT = LlavaPrompt()
