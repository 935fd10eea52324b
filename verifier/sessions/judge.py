"""Are the recorded answers those of this file to that input? If not, what explains them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Literal

import numpy as np

from verifier.families.conventions import ENCODER
from verifier.families.driver import Script
from verifier.gather.conversations import run_bundle
from verifier.measures.own_answers import Given, OwnAnswers, Stretch, length_of
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Array, Bundle, program_hash
from verifier.sessions.hypotheses import NO_RESET, SAMPLED, Context, Hypothesis, deviations, hypotheses, recorded
from verifier.sessions.inputs import Subject
from verifier.sessions.records import Session, Turn

Outcome = Literal["sound", "explained", "unexplained"]
"""sound: the file's answer to an input that is right. explained: something is wrong, and what is named. unexplained: nothing that is known explains it."""
ANOTHER_FILE, ANOTHER_TOKENIZER = "another file", "another tokenizer file"
NO_ROOM = "no room: the conversation is longer than the cache"
OTHER_COUNT = "another number of tokens"
LONGEST_ANSWER = 96


@dataclass(frozen=True)
class Judged:
    """What is said of one turn: `causes` by name, the likeliest first, and in words what was compared."""

    turn: Turn
    outcome: Outcome
    causes: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class SessionVerdict:
    """All turns, `causes` that concern the whole session, and `notes`."""

    turns: tuple[Judged, ...]
    causes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 if all is sound, 1 if what is wrong was found, 2 if something stays unexplained."""
        outcomes = {judged.outcome for judged in self.turns}
        if "unexplained" in outcomes and not self.causes:
            return 2
        return 1 if self.causes or outcomes != {"sound"} else 0


def judge_session(session: Session, subject: Subject) -> SessionVerdict:
    """Judge every turn; our driver answers on this machine, in one process for what was recorded and one for what may have been fed instead."""
    causes, notes = _whole(session, subject)
    contexts = _contexts(session, subject)
    possible = [list(hypotheses(context)) for context in contexts]
    plain = [recorded(context) for context in contexts]
    taken = _sizes_taken(subject, [*plain, *chain.from_iterable(possible)])
    first = _Asking(subject, taken)
    numbers = [first.ask(one, context.turn) for one, context in zip(plain, contexts, strict=True)]
    answers = first.answers()
    open_ones = {
        at
        for at, (context, number) in enumerate(zip(contexts, numbers, strict=True))
        if not _explains(subject, context.turn, None if number is None else answers[number], stopped=True)
    }
    second = _Asking(subject, taken)
    tried = {at: [(one, second.ask(one, contexts[at].turn)) for one in possible[at]] for at in sorted(open_ones)}
    others = second.answers()
    turns, patches = [], subject.family.patches
    for at, context in enumerate(contexts):
        if at not in open_ones:
            turns.append(_as_recorded(context))
            continue
        fitting = [
            one
            for one, number in tried[at]
            if number is not None and _explains(subject, context.turn, others[number], stopped=False)
        ]
        fitting.sort(key=lambda one: context.turn.prompt_tokens not in (None, length_of(one.stretches, patches)))
        found = [one.named for one in fitting]
        number = numbers[at]
        turns.append(_otherwise(context, found, len(tried[at]), None if number is None else answers[number]))
    return SessionVerdict(tuple(turns), causes, notes)


def _sizes_taken(subject: Subject, asked: Sequence[Hypothesis]) -> frozenset[tuple[int, ...]]:
    """The sizes of pictures that the program takes, of those that are asked about: an error would end the conversations behind it."""
    pictures = (stretch for one in asked for stretch in one.stretches if isinstance(stretch, np.ndarray))
    shapes = sorted({picture.shape for picture in pictures})
    script = Script(subject.caller)
    for shape in shapes:
        picture = np.full(shape, 127, np.uint8)
        script.add(ENCODER, subject.caller.image(picture), keep=False, may_fail=True)
    result = run_bundle(LocalRunner(), Bundle(subject.artifact.path, tuple(script.calls)))
    returned = range(result.finished_calls)
    return frozenset(shape for at, shape in enumerate(shapes) if at in returned and at not in result.errors)


def _whole(session: Session, subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the head says that concerns every turn."""
    causes, notes = [], []
    if not session.program_sha256:
        notes.append("the session does not say which file it ran: record program_sha256")
    elif session.program_sha256 != program_hash(subject.artifact.path):
        causes.append(f"{ANOTHER_FILE}: sha256 {session.program_sha256[:16]}…")
    if not session.tokenizer_sha256:
        notes.append("the session does not say which tokenizer file it read: record tokenizer_sha256")
    elif session.tokenizer_sha256 != subject.tokenizer_sha256:
        causes.append(
            f"{ANOTHER_TOKENIZER}: sha256 {session.tokenizer_sha256[:16]}…, not that of {subject.tokenizer_file.name}"
        )
    blank = next((text for text in _behind_pictures(session) if _is_spelled_otherwise(subject, text)), None)
    if blank is not None:
        notes.append(
            "a text behind a picture gets other ids than the checkpoint's: ExecuTorch's runner encodes it as one of its own; feed ids"
        )
    return tuple(causes), tuple(notes)


def _behind_pictures(session: Session) -> list[str]:
    """Texts that stand behind a picture and were not fed as ids."""
    pairs = ((a, b) for turn in session.turns for a, b in pairwise(turn.inputs))
    return [after.text for before, after in pairs if before.is_picture and after.text is not None and after.ids is None]


def _is_spelled_otherwise(subject: Subject, text: str) -> bool:
    return subject.tokenizer.encode_behind(text) != subject.by_runner.encode(text)


def _contexts(session: Session, subject: Subject) -> list[Context]:
    """Every turn with what is in the cache before it."""
    made: list[Context] = []
    history: tuple[Stretch, ...] = ()
    before: tuple[Stretch, ...] = ()
    earlier: list[Array] = []
    for number, turn in enumerate(session.turns):
        if turn.reset or number == 0:
            history, before = (), history
        context = Context(subject, turn, history, tuple(earlier[-2:]), before)
        made.append(context)
        pictures = [subject.pixels(one) for one in turn.inputs if one.is_picture]
        earlier += [one for one in pictures if not any(one is other for other in earlier)]
        answer = _recorded_ids(turn, subject)
        history = (*history, *context.segments, *((Given(answer[:-1]),) if len(answer) > 1 else ()))
    return made


def _recorded_ids(turn: Turn, subject: Subject) -> tuple[int, ...]:
    """The ids of a recorded answer with the one that ends it: those that were recorded, else those of its text."""
    if turn.answer_ids is not None:
        return turn.answer_ids
    text = (turn.answer or "").strip()
    return (*subject.tokenizer.encode(text), subject.tokenizer.eos_id) if text else ()


@dataclass
class _Asking:
    """Questions to our driver in one bundle. A conversation that does not fit, or has a picture of a size that is not `taken`, is not asked."""

    subject: Subject
    taken: frozenset[tuple[int, ...]]
    own: OwnAnswers = field(init=False)

    def __post_init__(self) -> None:
        subject = self.subject
        self.own = OwnAnswers(subject.caller, subject.family.patches, subject.artifact.max_seq_len)

    def ask(self, one: Hypothesis, turn: Turn) -> int | None:
        """The number of the answer, None for what has no room."""
        positions = self.own.positions
        if turn.settings.seq_len is not None and turn.settings.seq_len > 0:
            positions = min(positions, turn.settings.seq_len)
        room = positions - length_of(one.stretches, self.own.patches)
        pictures = [stretch for stretch in one.stretches if isinstance(stretch, np.ndarray)]
        if room < int(bool(turn.error)) or not all(picture.shape in self.taken for picture in pictures):
            return None
        if turn.answer_ids is not None:  # llava_main draws one more, behind the last position
            room += 1
        most = turn.settings.max_new_tokens
        tokens = LONGEST_ANSWER if most is None or most < 1 else min(most, LONGEST_ANSWER)
        return self.own.ask(one.stretches, max(1, min(tokens, room)))

    def answers(self) -> list[tuple[int, ...]]:
        """All of them; none to nothing."""
        if not self.own.logits:
            return []
        bundle = Bundle(self.subject.artifact.path, tuple(self.own.script.calls))
        return self.own.answers(run_bundle(LocalRunner(), bundle).outputs, tuple(self.subject.tokenizer.ends))


def _explains(subject: Subject, turn: Turn, own: Sequence[int] | None, *, stopped: bool) -> bool:
    """Whether a recorded answer is our driver's, or, if it may have been `stopped`, the beginning of it; where the conversation has no room, an error is right."""
    if own is None:
        return bool(turn.error)
    if turn.error or not own:
        return False
    if turn.answer_ids is not None:
        ended = turn.answer_ids
        longest = len(own) == LONGEST_ANSWER and tuple(own) == ended[: len(own)]
        return bool(ended) and (tuple(own[: len(ended)]) == ended or longest)
    text = (turn.answer or "").strip()
    said = [one for one in (subject.tokenizer.decode(list(own)).strip(), _printed(subject, own)) if one and text]
    longest = len(own) == LONGEST_ANSWER and any(text.startswith(one) for one in said)
    return text in said or longest or (stopped and any(one.startswith(text) for one in said))


def _printed(subject: Subject, own: Sequence[int]) -> str:
    """An answer as a runner prints it, token by token."""
    return b"".join(subject.by_runner.piece(token) for token in own).decode("utf-8", "replace").strip()


def _as_recorded(context: Context) -> Judged:
    """The answer is the file's to the recorded input: is the input right?"""
    turn, wrong = context.turn, list(deviations(context))
    if turn.error and not wrong:
        wrong.append(NO_ROOM)
    length = length_of(context.segments, context.subject.family.patches)
    if not context.history and turn.prompt_tokens not in (None, length):
        wrong.append(f"{OTHER_COUNT}: the runner counted {turn.prompt_tokens}, what was recorded has {length}")
    said = (
        f"the file ends this call with an error, too: {turn.error}"
        if turn.error
        else "the answer is this file's to what was recorded"
    )
    return Judged(turn, "explained" if wrong else "sound", tuple(wrong), said)


def _otherwise(context: Context, found: Sequence[str], tried: int, own: Sequence[int] | None) -> Judged:
    """The answer is not the file's to the recorded input."""
    turn, subject = context.turn, context.subject
    expected = "an error" if own is None else repr(subject.tokenizer.decode(list(own)))
    said = f"this file answers {expected} to what was recorded, the session has {turn.answer or turn.error or turn.answer_ids!r}"
    if turn.settings.temperature:
        return Judged(
            turn, "explained", (SAMPLED, *found), f"{said}; the temperature was {turn.settings.temperature:g}"
        )
    if found:
        return Judged(turn, "explained", tuple(found), f"{said}; our driver gives that answer to {found[0]}")
    length = length_of(context.history + context.segments, subject.family.patches)
    if turn.prompt_tokens is not None and turn.prompt_tokens != length:
        counted = f"{said}; the runner counted {turn.prompt_tokens} tokens, this tokenizer file makes {length}"
        named = NO_RESET if turn.prompt_tokens > length + subject.family.patches else ANOTHER_TOKENIZER
        return Judged(turn, "explained", (named,), counted)
    return Judged(turn, "unexplained", (), f"{said}; none of {tried} hypotheses gives that answer")
