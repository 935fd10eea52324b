"""Ways to ask ExecuTorch's runner besides one picture and one question, each with what our driver says has to come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verifier.core.types import Prompt
from verifier.families.conventions import pieces
from verifier.measures.own_answers import Given, OwnAnswers, Stretch, length_of
from verifier.measures.use import SITUATIONS, Ends, Expected, Situation
from verifier.runner.official import Input, Settings, Step, Talk, Told

if TYPE_CHECKING:
    from verifier.families.prompts import PromptFormat
    from verifier.families.samples import Sample
    from verifier.families.tokens.tokenizer import Tokenizer

TOKENS = 8
"""Of an answer that is not a golden one's."""
STOPPED_AFTER = 3


@dataclass(frozen=True)
class Wanted:
    """What one call of `generate` has to give: the number of an answer of our driver, or its tokens."""

    own: int | tuple[int, ...]
    ends: Ends = "answer"
    whole: bool = True
    least: int = 1


@dataclass(frozen=True)
class Asker:
    """What situations are made of: the conversations of two samples, `first` and `other`, with the tokens that are `known` of our driver's answer;
    a prompt that nearly fills the cache and our driver's answer to it, which has `room` for so many tokens. `own` collects what else our driver is asked."""

    own: OwnAnswers
    tokenizer: Tokenizer
    form: PromptFormat
    samples: Sequence[Sample]
    first: int
    other: int
    known: Mapping[int, tuple[int, ...]]
    filling: Prompt
    filled: tuple[int, ...]
    room: int
    brief: bool
    """Whether the edges are asked without a picture: of a large model, each one is many seconds."""

    def ids(self, ids: Sequence[int]) -> tuple[Input, ...]:
        """Ids as inputs, in pieces as our driver feeds them."""
        return ids_in_pieces(ids, self.own.caller.text)

    def answer(self, *stretches: Stretch) -> Wanted:
        """Our driver's answer to a conversation, or an error for one that the cache has no room for."""
        if length_of(stretches, self.own.patches) + TOKENS > self.own.positions:
            return _ERROR
        return Wanted(self.own.ask(stretches, TOKENS))

    def prompt(self, number: int) -> tuple[Input, ...]:
        """The conversation of a sample."""
        prompt = self.samples[number].prompt
        return (*self.ids(prompt.before), Input(picture=number), *self.ids(prompt.after))

    def whole(self, number: int) -> Step:
        """The call that asks for as many tokens of a sample's answer as are known."""
        return Step("generate", self.prompt(number), Settings(max_new_tokens=max(1, len(self.known[number]))))

    def question(self) -> tuple[int, ...]:
        """Text without a picture, without BOS."""
        return tuple(self.tokenizer.encode(f"{self.form.default_question} {self.form.cue}"))

    def text_alone(self) -> tuple[int, ...]:
        """A conversation without a picture."""
        return (*((self.tokenizer.bos_id,) if self.tokenizer.adds_bos else ()), *self.question())

    def resolved(self, told: Told, wanted: Sequence[Wanted], answers: Sequence[tuple[int, ...]]) -> Situation:
        """A situation with our driver's answers in place of their numbers."""
        expected = tuple(
            Expected(answers[one.own] if isinstance(one.own, int) else one.own, one.ends, one.whole, one.least)
            for one in wanted
        )
        return Situation(told, expected)


Situated = tuple[Talk, tuple[Wanted, ...]]
"""A talk, and what has to come of each of its calls of `generate`."""
RESET = Step("reset")
_ERROR = Wanted((), "error")


def ids_in_pieces(ids: Sequence[int], most: int) -> tuple[Input, ...]:
    """Ids as inputs of so many tokens at most, as our driver feeds them."""
    made, at = [], 0
    for size in pieces(len(ids), most):
        made.append(Input(ids=tuple(ids[at : at + size])))
        at += size
    return tuple(made)


def situations(asker: Asker) -> dict[str, Situated]:
    """The talk of each situation, and what has to come of its calls."""
    made = _conversations(asker) | _limits(asker) | _edges(asker)
    assert made.keys() == set(SITUATIONS)
    return {name: (Talk(name, (RESET, *made[name][0])), made[name][1]) for name in SITUATIONS}


Made = dict[str, tuple[tuple[Step, ...], tuple[Wanted, ...]]]


def _conversations(asker: Asker) -> Made:
    """More than one call, picture or none."""
    first, other = asker.whole(asker.first), asker.whole(asker.other)
    one, two = Wanted(asker.known[asker.first]), Wanted(asker.known[asker.other])
    sample = asker.samples[asker.first]
    before, after = sample.prompt.before, sample.prompt.after
    question, few = asker.question(), Settings(max_new_tokens=TOKENS)
    told: tuple[Stretch, ...] = (before, sample.image, after, Given(asker.known[asker.first][:-1]))
    second = asker.answer(*told, question)
    pictures = (*asker.ids(before), Input(picture=asker.first), Input(picture=asker.other), *asker.ids(after))
    both = asker.answer(before, sample.image, asker.samples[asker.other].image, after)
    *opening, last = first.inputs
    again = Step("generate", asker.ids(question), few)
    return {
        "second turn": ((first, again), (one, second)),
        "reset": ((first, again, RESET, first), (one, second, one)),
        "A, B, A": ((first, RESET, other, RESET, first), (one, two, one)),
        "prefill, then generate": (
            (Step("prefill", tuple(opening)), Step("generate", (last,), first.settings)),
            (one,),
        ),
        "text only": (
            (Step("generate", asker.ids(asker.text_alone()), few),),
            (asker.answer(asker.text_alone()),),
        ),
        "two images": ((Step("generate", pictures, few),), (both,)),
        "stopped": (
            (Step("generate", first.inputs, first.settings, STOPPED_AFTER), RESET, first),
            (Wanted(asker.known[asker.first][:STOPPED_AFTER]), one),
        ),
    }


def _limits(asker: Asker) -> Made:
    """The end of the cache, and beyond."""
    prompt = asker.filling
    full = (*asker.ids(prompt.before), Input(picture=0), *asker.ids(prompt.after))
    words = (prompt.before + prompt.after) * (asker.own.positions // max(1, len(prompt.before + prompt.after)) + 2)
    fills, beyond = (Step("generate", asker.ids(words[: asker.own.positions + more])) for more in (0, 1))
    to_end = Wanted(asker.filled, whole=False, least=asker.room)
    return {
        "to the end of the cache": ((Step("generate", full),), (to_end,)),
        "a prompt that fills the cache": ((fills,), (Wanted((), "error", whole=False),)),
        "a prompt that is too long": ((beyond,), (_ERROR,)),
    }


def _edges(asker: Asker) -> Made:
    """Nothing asked, and no room for an answer."""
    prompt = asker.samples[asker.first].prompt
    inputs, length = asker.prompt(asker.first), prompt.length(asker.own.patches)
    first: tuple[int, ...] | int = asker.known[asker.first][:1]
    if asker.brief:
        question = asker.text_alone()
        inputs, length, first = asker.ids(question), len(question), asker.own.ask((question,), 1)
    one, cut = Wanted(first), Wanted(first, "error", whole=False)

    def limited(settings: Settings) -> tuple[Step, ...]:
        return (Step("generate", inputs, settings),)

    return {
        "an empty prompt": ((Step("generate", ()),), (_ERROR,)),
        "an empty text": ((Step("generate", (Input(text=""),)),), (_ERROR,)),
        "max_new_tokens 1": (limited(Settings(max_new_tokens=1)), (one,)),
        "max_new_tokens 0": (limited(Settings(max_new_tokens=0)), (cut,)),
        "seq_len behind the prompt": (limited(Settings(seq_len=length + 1)), (one,)),
        "seq_len of the prompt": (limited(Settings(seq_len=length)), (cut,)),
    }
