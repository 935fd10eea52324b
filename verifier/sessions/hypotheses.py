"""What an app may have fed in place of what it recorded, and what is wrong with what it recorded: each with a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from verifier.core.errors import ImageError
from verifier.families.tokens.readings import BLANK, BOS_BEHIND, NO_BLANK, NO_BOS, TRAILING, TWO_BOS
from verifier.measures.own_answers import Stretch
from verifier.runner.protocol import Array
from verifier.sessions.inputs import OWN, Segment, Subject, path_of, with_text
from verifier.sessions.records import Turn

IMAGE_BEFORE = "the picture of an earlier conversation"
NO_RESET = "no reset: the conversation before is still in the cache"
SAMPLED = "sampling: the temperature is not 0"
UNKNOWN_PIXELS = "pixels that no known path makes of this picture"


@dataclass(frozen=True)
class Hypothesis:
    """What may have been fed, and how that is called; `named` is "" for what was recorded."""

    named: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Context:
    """A turn, what is in the cache before it, `earlier` pictures of the session, and what was in the cache before a reset."""

    subject: Subject
    turn: Turn
    history: tuple[Stretch, ...]
    earlier: tuple[Array, ...]
    before_reset: tuple[Stretch, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What was recorded."""
        return self.subject.encoded(self.turn.inputs, self.turn.settings, at_start=not self.history)


def deviations(context: Context) -> tuple[str, ...]:
    """What is wrong with the recorded input itself, before any answer is asked."""
    found = []
    turn, subject = context.turn, context.subject
    segments, bos = context.segments, subject.tokenizer.bos_id
    texts = [one for one in segments if isinstance(one, tuple)]
    if subject.tokenizer.adds_bos and not context.history:
        count = sum(segment.count(bos) for segment in texts)
        first = bool(texts) and texts[0][:1] == (bos,)
        if not first:
            found.append(NO_BOS)
        if first and count > 1:
            found.append(TWO_BOS if texts[0][1:2] == (bos,) else BOS_BEHIND)
    last = turn.inputs[-1]
    if last.text is not None and last.text != last.text.rstrip():
        found.append(TRAILING)
    if turn.settings.temperature:
        found.append(f"{SAMPLED}, but {turn.settings.temperature:g}")
    if any(one.is_picture for one in turn.inputs) and any(isinstance(one, np.ndarray) for one in context.history):
        found.append(NO_RESET)
    return (*found, *_of_pixels(context))


def _of_pixels(context: Context) -> Iterator[str]:
    for one in context.turn.inputs:
        if one.pixels is None or one.picture is None:
            continue
        paths = context.subject.paths(one.picture)
        path = path_of(one.pixels, paths)
        if path == OWN:
            continue
        if not path and any(np.array_equal(one.pixels, other) for other in context.earlier):
            path = IMAGE_BEFORE
        if path == IMAGE_BEFORE:
            yield IMAGE_BEFORE
        else:
            yield f"pixels by {path}" if path else UNKNOWN_PIXELS


def recorded(context: Context) -> Hypothesis:
    """What was recorded."""
    return Hypothesis("", (*context.history, *context.segments))


def hypotheses(context: Context) -> Iterator[Hypothesis]:
    """What else may have been fed, one deviation at a time, the likeliest first."""
    history = context.history
    yield from _other_ids(context)
    yield from _other_pixels(context)
    if context.before_reset and not history:
        yield Hypothesis(NO_RESET, (*context.before_reset, *context.segments))


def _other_ids(context: Context) -> Iterator[Hypothesis]:
    turn, segments, subject = context.turn, context.segments, context.subject
    last = len(turn.inputs) - 1
    text = turn.inputs[last].text

    def made(name: str, changed: Sequence[Segment]) -> Hypothesis:
        return Hypothesis(name, (*context.history, *changed))

    if text is not None:
        for name, other in ((TRAILING, f"{text} "), ("a trailing blank was cut off", text.rstrip())):
            if other != text:
                fed = with_text(turn.inputs, last, other)
                yield made(name, subject.encoded(fed, turn.settings, at_start=not context.history))
        if len(segments) > 1 and isinstance(segments[-2], np.ndarray):
            yield made(NO_BLANK, (*segments[:-1], tuple(subject.tokenizer.encode_behind(text))))
    bos, texts = subject.tokenizer.bos_id, [n for n, one in enumerate(segments) if isinstance(one, tuple)]
    if not context.history and texts and texts[0] == 0:
        first = tuple(segments[0])
        bare = tuple(token for token in first if token != bos)
        for name, front in ((NO_BOS, bare), (TWO_BOS, (bos, bos, *bare)), ("BOS once", (bos, *bare))):
            if front != first:
                yield made(name, (front, *segments[1:]))
        if len(texts) > 1:
            at = texts[-1]
            yield made(BOS_BEHIND, (*segments[:at], (bos, *segments[at]), *segments[at + 1 :]))
    if turn.inputs[last].ids is not None and len(segments) > 1 and isinstance(segments[-2], np.ndarray):
        blank = subject.by_runner.encode("\n")[:-1]
        yield made(BLANK, (*segments[:-1], (*blank, *segments[-1])))


def _other_pixels(context: Context) -> Iterator[Hypothesis]:
    for at, segment in enumerate(context.segments):
        if not isinstance(segment, np.ndarray):
            continue

        def made(name: str, pixels: Array, at: int = at) -> Hypothesis:
            segments = context.segments
            return Hypothesis(name, (*context.history, *segments[:at], pixels, *segments[at + 1 :]))

        yield made("pixels in the order BGR", np.ascontiguousarray(segment[::-1]))
        yield from (made(IMAGE_BEFORE, other) for other in context.earlier if not np.array_equal(other, segment))
        picture = next((one.picture for one in context.turn.inputs if one.is_picture), None)
        if picture is None:
            continue
        try:
            paths = context.subject.paths(picture)
        except ImageError:
            continue
        for name, pixels in paths.items():
            if not np.array_equal(pixels, segment):
                yield made(f"pixels by {name}", pixels)
                yield made(f"pixels by {name}, in the order BGR", np.ascontiguousarray(pixels[::-1]))
