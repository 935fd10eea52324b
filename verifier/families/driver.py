"""How the program is used: which calls, in which order, at which positions. The part of a runner that can be wrong.

A conversation goes in as ExecuTorch's LLaVA runner does it: text before the image, image tokens, text after it, then one
call per answer token; each chunk starts where the last one ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from verifier.core.errors import UsageError
from verifier.core.types import Prompt, Segment
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.runner.protocol import ArgmaxOf, Array, Call, OutputOf, Part


@dataclass
class Script:
    """Calls in the making; `add` returns the number by which a later call can use the output."""

    calls: list[Call] = field(default_factory=list)

    def add(
        self,
        method: str,
        *inputs: Array | OutputOf | ArgmaxOf,
        keep: bool = True,
        may_fail: bool = False,
        instance: int = 0,
        further: tuple[Part, ...] = (),
    ) -> int:
        """Append one call."""
        self.calls.append(Call(method, inputs, keep, may_fail, instance, further))
        return len(self.calls) - 1


@dataclass(frozen=True)
class Conversation:
    """Numbers of the calls that matter: the image tokens, and the logits before each answer token; `position` is the first
    that is not used."""

    vision: int
    logits: tuple[int, ...]
    position: int


def ids_array(ids: tuple[int, ...] | list[int]) -> Array:
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
        embedded = script.add(EMBEDDING, ids_array(prompt.after), keep=False)
        first = script.add(DECODER, OutputOf(embedded), position_array(position))
        return behind.vision, first, position + len(prompt.after)
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
    vision = [script.add(ENCODER, image) for image in images]
    waiting = iter(vision)
    position, last = 0, -1
    for number, segment in enumerate(segments):
        tokens = patches if segment is None else len(segment)
        source = next(waiting) if segment is None else script.add(EMBEDDING, ids_array(segment), keep=False)
        keep = number == len(segments) - 1
        last = script.add(DECODER, OutputOf(source), position_array(position), keep=keep)
        position += tokens
    return Spliced(tuple(vision), last, position)


def favoured(logits: int) -> ArgmaxOf:
    """The token that a call's logits favour: temperature 0."""
    return ArgmaxOf(logits)


def _step(script: Script, ids: Array | ArgmaxOf, position: int) -> int:
    embedded = script.add(EMBEDDING, ids, keep=False)
    return script.add(DECODER, OutputOf(embedded), position_array(position))


def vocabulary_calls(script: Script, *, vocabulary: int, max_seq_len: int) -> tuple[int, ...]:
    """Append calls that embed every token id once, in chunks of at most `max_seq_len`."""
    ids = list(range(vocabulary))
    return tuple(script.add(EMBEDDING, ids_array(ids[i : i + max_seq_len])) for i in range(0, vocabulary, max_seq_len))
