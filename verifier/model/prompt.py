"""The prompt of LLaVA-1.5 and where the image goes in it.

A conversation is spelled once, as text with one `<image>`; its ids come in two parts, before and after the image, as
runners feed them: BOS once, at the very start; no BOS after the image (LC#3645 was a second one).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from verifier.errors import CheckpointError

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
BEFORE_IMAGE = SYSTEM + "USER: "
DEFAULT_QUESTION = "Describe the image."
_TOKENIZER_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class Prompt:
    """Token ids around an image; `before` begins with BOS."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def length(self, patches: int) -> int:
        """Tokens in the KV-cache once everything is prefilled."""
        return len(self.before) + patches + len(self.after)


class Tokenizer:
    """SentencePiece as Llama uses it, with the pieces that runners need."""

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise CheckpointError(
                "the checkpoint has no tokenizer.model", where=model.parent, fix="copy it from the original checkpoint"
            )
        if model.stat().st_size > _TOKENIZER_LIMIT_BYTES:
            raise CheckpointError(
                "tokenizer.model is too large", got=model.stat().st_size, expected=f"<= {_TOKENIZER_LIMIT_BYTES} bytes"
            )
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
        except (RuntimeError, OSError) as error:
            raise CheckpointError("tokenizer.model is not a SentencePiece model", got=error, where=model) from error

    @property
    def bos_id(self) -> int:
        """Id of <s>."""
        return int(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        """Id of </s>."""
        return int(self._processor.eos_id())

    def encode(self, text: str) -> list[int]:
        """Ids of a text at the start of a sequence, without BOS."""
        return list(self._processor.encode(text))

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text in the middle of a sequence: no prefix space, as Hugging Face spells what follows `<image>`."""
        anchor = self._processor.encode("\n")
        return list(self._processor.encode("\n" + text))[len(anchor) :]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of ids; EOS and what follows it are dropped, the leading space too."""
        stop = ids.index(self.eos_id) if self.eos_id in ids else len(ids)
        known = [i for i in ids[:stop] if 0 <= i < self._processor.vocab_size()]
        return str(self._processor.decode(known)).strip()

    def piece(self, id: int) -> str:
        """One token as the vocabulary spells it, with `\u2581` for a space; `<id>` beyond its end."""
        return str(self._processor.id_to_piece(id)) if 0 <= id < self._processor.vocab_size() else f"<{id}>"


@dataclass(frozen=True)
class Turn:
    """One exchange: a question, how many images stand before it, and the answer if it was given already."""

    question: str
    images: int = 1
    answer: str | None = None


Segment = tuple[int, ...] | None
"""Token ids of a stretch of text, or None where an image goes."""


def spelled_dialogue(turns: tuple[Turn, ...]) -> str:
    """A conversation of several turns as text with `<image>` and `</s>`, as a Hugging Face processor takes it."""
    parts = [SYSTEM]
    for turn in turns:
        parts.append("USER: " + "<image>\n" * turn.images + f"{turn.question} ASSISTANT:")
        parts.append(f" {turn.answer}</s>" if turn.answer is not None else "")
    return "".join(parts)


def dialogue_segments(tokenizer: Tokenizer, turns: tuple[Turn, ...]) -> tuple[Segment, ...]:
    """The same conversation as runners feed it. What a user writes is text, a literal `<image>` or `</s>` too."""
    segments: list[Segment] = []
    ids = [tokenizer.bos_id]
    text, fresh = SYSTEM, True

    def flush() -> None:
        nonlocal text, fresh
        ids.extend(tokenizer.encode(text) if fresh else tokenizer.encode_continuation(text))
        text, fresh = "", False

    for turn in turns:
        text += "USER: "
        for _ in range(turn.images):
            flush()
            segments += [tuple(ids), None]
            ids = []
            text = "\n"
        text += f"{turn.question} ASSISTANT:"
        if turn.answer is not None:
            text += f" {turn.answer}"
            flush()
            ids.append(tokenizer.eos_id)
    if text:
        flush()
    return (*segments, tuple(ids))


def after_image(question: str) -> str:
    """What follows the image in the text: a newline, the question, and the answer's cue."""
    return f"\n{question} ASSISTANT:"


def caption_prompt(tokenizer: Tokenizer, question: str = DEFAULT_QUESTION) -> Prompt:
    """The LLaVA-1.5 conversation with one image and one question. An empty question asks as the seed's command does:
    `ASSISTANT:` right behind the image."""
    tail = tokenizer.encode_continuation(after_image(question)) if question else tokenizer.encode("ASSISTANT:")
    return Prompt((tokenizer.bos_id, *tokenizer.encode(BEFORE_IMAGE)), tuple(tail))


def spelled(question: str = DEFAULT_QUESTION) -> str:
    """The whole conversation as text with `<image>`, as a Hugging Face processor takes it."""
    return BEFORE_IMAGE + "<image>" + after_image(question)
