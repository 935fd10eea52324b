"""How the program is used: which calls, in which order, at which positions. The part of a runner that can be wrong.

A conversation goes in as ExecuTorch's LLaVA runner does it: text before the image, image tokens, text after it, then one
call per answer token; each chunk starts where the last one ended. What a call is given follows from the program's convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from verifier.artifact.program import Declarations
from verifier.core.errors import UsageError
from verifier.core.types import Prompt, Segment
from verifier.families.conventions import (
    DECODER,
    EMBEDDING,
    ENCODER,
    Convention,
    most_tokens,
    pieces,
    recognize,
    text_piece,
)
from verifier.runner.protocol import ArgmaxOf, Array, Call, OutputOf, Part, Rows

if TYPE_CHECKING:
    from verifier.families.family import Family, PixelFormat

RESCALE = np.float32(1 / 255)


@dataclass(frozen=True)
class Caller:
    """How one program is called: its convention, its family's form of pictures, and how many tokens one call takes: ids that are `embedded`,
    embeddings that are `decoded`, and `text` that goes through both."""

    convention: Convention
    pixels: PixelFormat
    embedded: int
    decoded: int
    text: int

    def image(self, picture: Array) -> Array:
        """What `vision_encoder` is given for a picture uint8 [3, h, w]."""
        return picture if self.convention.pixels == "bytes" else normalized(picture, self.pixels)

    def positions(self, start: int, tokens: int) -> Array:
        """What `text_decoder` is given as the positions of a chunk: int64 [1], or [S]."""
        first = position_array(start)
        return first if self.convention.positions == "start" else first + np.arange(tokens, dtype=np.int64)

    @property
    def rows(self) -> Rows:
        """Which rows of the logits are kept: those of all positions of a prompt are 87 MB for a 7B model."""
        return "all" if self.convention.logits == "last" else "last"


def caller_of(program: Declarations, family: Family) -> Caller:
    """How a program of a family is called. Raises `ArtifactError` for a convention that is not known."""
    methods = program.methods
    embedded, decoded = (most_tokens(methods[role]) or 1 for role in (EMBEDDING, DECODER))
    return Caller(recognize(program), family.pixels, embedded, decoded, text_piece(methods))


def normalized(picture: Array, form: PixelFormat) -> Array:
    """A picture uint8 [3, h, w] as an app gives it to a program that takes normalized pixels: fp32 [1, 3, H, H].

    It is centred on black, an odd margin puts its extra pixel right and below. Programs that take bytes compute the same inside.
    """
    height, width = picture.shape[1:]
    top, left = (form.side_px - height) // 2, (form.side_px - width) // 2
    frame = np.zeros((3, form.side_px, form.side_px), np.float32)
    frame[:, top : top + height, left : left + width] = picture
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (form.mean, form.std))
    made: Array = ((frame * RESCALE - mean) / std)[None]
    return made


@dataclass
class Script:
    """Calls of one program in the making; each method returns the number by which a later call can use the output."""

    caller: Caller
    calls: list[Call] = field(default_factory=list)
    _images: dict[int, tuple[Array, Array]] = field(default_factory=dict, repr=False)

    def add(
        self,
        method: str,
        *inputs: Array | OutputOf | ArgmaxOf,
        keep: bool = True,
        may_fail: bool = False,
        instance: int = 0,
        further: tuple[Part, ...] = (),
        rows: Rows = "all",
    ) -> int:
        """Append one call, whatever the convention."""
        self.calls.append(Call(method, inputs, keep, may_fail, instance, further, rows))
        return len(self.calls) - 1

    def encode(self, picture: Array, *, keep: bool = True) -> int:
        """Append the call of `vision_encoder` for a picture uint8 [3, h, w]. The same picture is the same array in every call: a bundle has it
        once."""
        if id(picture) not in self._images:
            self._images[id(picture)] = picture, self.caller.image(picture)
        return self.add(ENCODER, self._images[id(picture)][1], keep=keep)

    def embed(self, ids: Array | ArgmaxOf, *, keep: bool = False) -> int:
        """Append the call of `token_embedding` for ids int64 [1, S], at most `Caller.embedded`."""
        return self.add(EMBEDDING, ids, keep=keep)

    def decode(
        self,
        source: Array | OutputOf,
        start: int,
        tokens: int,
        *,
        keep: bool = True,
        may_fail: bool = False,
        instance: int = 0,
        further: tuple[Part, ...] = (),
        caches: tuple[Array, ...] = (),
    ) -> int:
        """Append the call of `text_decoder` for embeddings [1, S, D] of so many `tokens` at a position. Its output is the logits of the last
        token, [1, V]. `caches` are set before it by a rewired program, which takes them behind its own inputs."""
        given = (source, self.caller.positions(start, tokens), *caches)
        rows = self.caller.rows
        return self.add(DECODER, *given, keep=keep, may_fail=may_fail, instance=instance, further=further, rows=rows)

    def read(self, ids: Sequence[int], start: int, *, keep: bool = True) -> int:
        """Append the calls for text at a position, in pieces if it is too long for one call; the number of the last one."""
        last, position = -1, start
        for size in pieces(len(ids), self.caller.text):
            at = position - start
            source = self.embed(ids_array(ids[at : at + size]))
            last = self.decode(OutputOf(source), position, size, keep=keep and at + size == len(ids))
            position += size
        return last


@dataclass(frozen=True)
class Conversation:
    """Numbers of the calls that matter: the image tokens, and the logits before each answer token; `position` is the first
    that is not used."""

    vision: int
    logits: tuple[int, ...]
    position: int


def ids_array(ids: Sequence[int]) -> Array:
    """Token ids as the program takes them: int64 [1, S]."""
    return np.array([ids], np.int64)


def position_array(position: int) -> Array:
    """A position as the program takes it: int64 [1]."""
    return np.array([position], np.int64)


def converse(
    script: Script,
    *,
    image: Array,
    prompt: Prompt,
    answer: tuple[int, ...],
    patches: int,
    behind: Conversation | None = None,
) -> Conversation:
    """Append a teacher-forced conversation from position 0, or from the end of the image that the last one was `behind`: logits before
    every token of `answer`."""
    vision, first, position = prefill(script, image=image, prompt=prompt, patches=patches, behind=behind)
    logits = [first]
    for token in answer[:-1]:
        logits.append(_step(script, ids_array([token]), position))
        position += 1
    return Conversation(vision, tuple(logits), position)


def converse_freely(
    script: Script,
    *,
    image: Array,
    prompt: Prompt,
    tokens: int,
    patches: int,
    limit: int,
    behind: Conversation | None = None,
) -> Conversation:
    """Append a conversation as `converse` does whose every token is the one that the program's own logits favour; it ends
    after `tokens`, or when all `limit` positions are used."""
    vision, first, position = prefill(script, image=image, prompt=prompt, patches=patches, behind=behind)
    logits = [first]
    while len(logits) < tokens and position < limit:
        logits.append(_step(script, favoured(logits[-1]), position))
        position += 1
    return Conversation(vision, tuple(logits), position)


def prefill(
    script: Script, *, image: Array, prompt: Prompt, patches: int, behind: Conversation | None = None
) -> tuple[int, int, int]:
    """Append the image and the prompt around it: the calls of the image tokens and of the first logits, and the position
    behind them. If the conversation `behind` left image and text before it in the cache, only the text after it is appended."""
    if behind is not None:
        position = len(prompt.before) + patches
        return behind.vision, script.read(prompt.after, position), position + len(prompt.after)
    spliced = splice(script, (prompt.before, None, prompt.after), [image], patches=patches)
    return spliced.vision[0], spliced.logits, spliced.position


@dataclass(frozen=True)
class Spliced:
    """A prefilled dialogue: the calls of its image tokens, of its last logits, and the position behind it."""

    vision: tuple[int, ...]
    logits: int
    position: int


def splice(
    script: Script, segments: Sequence[Segment], images: Sequence[Array], *, patches: int, limit: int | None = None
) -> Spliced:
    """Append a dialogue from position 0: every image through the encoder, then text and image tokens in their order.

    Raises `UsageError` before any call if it does not fit into `limit` positions.
    """
    needed = sum(patches if segment is None else len(segment) for segment in segments)
    if limit is not None and needed > limit:
        raise UsageError(
            "the conversation does not fit into the program's KV-cache",
            got=f"{needed} tokens, {sum(segment is None for segment in segments)} images of {patches} among them",
            expected=f"at most {limit}",
            fix="shorten it, drop earlier turns, or export with a larger --max-seq-len",
        )
    vision = [script.encode(image) for image in images]
    waiting = iter(vision)
    position, last = 0, -1
    for number, segment in enumerate(segments):
        keep = number == len(segments) - 1
        if segment is None:
            last = script.decode(OutputOf(next(waiting)), position, patches, keep=keep)
            position += patches
        else:
            last = script.read(segment, position, keep=keep)
            position += len(segment)
    return Spliced(tuple(vision), last, position)


def favoured(logits: int) -> ArgmaxOf:
    """The token that a call's logits favour: temperature 0."""
    return ArgmaxOf(logits)


def _step(script: Script, ids: Array | ArgmaxOf, position: int) -> int:
    return script.decode(OutputOf(script.embed(ids)), position, 1)


def vocabulary_calls(script: Script, *, vocabulary: int) -> tuple[int, ...]:
    """Append calls that embed every token id once, as many in a call as it takes."""
    ids, most = range(vocabulary), script.caller.embedded
    return tuple(script.embed(ids_array(ids[first : first + most]), keep=True) for first in range(0, vocabulary, most))


def chunk_sizes(segments: Sequence[Segment], *, patches: int, text: int) -> list[int]:
    """Tokens of each decoder call that a dialogue takes: an image in one, text in pieces of `text` tokens."""
    each = ([patches] if segment is None else pieces(len(segment), text) for segment in segments)
    return list(chain.from_iterable(each))
