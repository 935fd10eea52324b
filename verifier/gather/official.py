"""What is asked of ExecuTorch's own runner on the program under test, and of our driver beside it, for the checks `use.*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from verifier.core.errors import RunnerError, UpstreamError
from verifier.core.types import Missing, Prompt
from verifier.families.samples import Sample
from verifier.families.tokens.readings import RUNNERS_OWN, Reading, readings
from verifier.gather.conversations import (
    LAST_TOKENS,
    ConversationBundle,
    filling_prompt,
    logits_of,
    run_bundle,
)
from verifier.gather.opening import Opened
from verifier.gather.situations import Asker, Situated, ids_in_pieces, situations
from verifier.measures.evidence import USER, answered_freely
from verifier.measures.own_answers import OwnAnswers, favoured_ids
from verifier.measures.use import Candidate, Fed, FedPrompt, UseEvidence
from verifier.runner.local import LocalRunner
from verifier.runner.official import Input, Settings, Step, Talk, Talks, Told, hold_talks
from verifier.runner.protocol import Array, Bundle, Result

OFFICIAL = "official"
FURTHER = 4
"""Tokens that an answer may go on behind the golden one's last."""
LOOKED_AT, LOOKED_AT_OF_LARGE, MOST_CANDIDATES = 2, 1, 8
"""Of each prompt: images whose answers tell hypotheses apart, and hypotheses."""
TALK_S, TALK_OF_LARGE_S = 30.0, 900.0
_SUFFIXES = (".model", ".bin", ".json")
"""Of tokenizer files, in the order in which ExecuTorch's runner does best with them."""


def ask_official(
    opened: Opened, samples: Sequence[Sample], made: ConversationBundle, conversed: Future[Result | Missing]
) -> UseEvidence | Missing:
    """Hold the golden conversations and the situations with ExecuTorch's runner, by ids and by text, and have our driver answer what explains
    the differences. It runs once the `conversed` ones are over, on this machine."""
    result = conversed.result()
    if isinstance(result, Missing):
        return result
    tokenizer = tokenizer_of(opened)
    if tokenizer is None:
        return Missing("no tokenizer file lies beside program or checkpoint: give --tokenizer FILE", "verifier")
    golden = [sample for sample in samples if sample.golden.kind != USER]
    if opened.family.large:
        chosen = answered_freely(tuple(sample.golden.name for sample in golden))
        golden = [sample for sample in golden if sample.golden.name in chosen]
    asking = _Asking(opened, golden, tokenizer, made, result.outputs)
    return asking.evidence()


def tokenizer_of(opened: Opened) -> Path | None:
    """The tokenizer file that an app ships: the named one, one beside the program, or the checkpoint's."""
    beside = [*opened.to_ship.files, *sorted(opened.checkpoint.directory.glob("tokenizer.*"))]
    usable = [path for path in beside if path.suffix in _SUFFIXES]
    shipped = [path for path in usable if path in opened.to_ship.files] or usable
    return min(shipped, key=lambda path: _SUFFIXES.index(path.suffix), default=None)


@dataclass(frozen=True)
class _Asking:
    """One request's questions to ExecuTorch's runner."""

    opened: Opened
    samples: list[Sample]
    tokenizer: Path
    made: ConversationBundle
    outputs: Mapping[int, Array]

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return tuple(self.opened.tokenizer.ends)

    @property
    def limit(self) -> int:
        """Positions of the cache."""
        return self.opened.artifact.max_seq_len

    def most(self, sample: Sample, prompt: Prompt | None = None) -> int:
        """Tokens that an answer may have, to the sample's own prompt or to another reading of it: one that is longer leaves less room."""
        room = self.limit - (prompt or sample.prompt).length(self.opened.family.patches)
        return max(1, min(len(sample.golden.ids) + FURTHER, room))

    def evidence(self) -> UseEvidence:
        """All talks held, and explained."""
        forced = {sample.golden.name: self._forced(sample) for sample in self.samples}
        asker, situated = self._situations(forced)
        talks = [*self._golden_talks(), *(talk for talk, _ in situated.values())]
        large = self.opened.family.large
        caller = self.opened.caller
        try:
            told = hold_talks(
                self.opened.artifact.path,
                self.tokenizer,
                talks,
                [caller.image(sample.image) for sample in self.samples],
                vocabulary=self.opened.checkpoint.geometry.text.vocabulary,
                talk_s=TALK_OF_LARGE_S if large else TALK_S,
            )
        except (RunnerError, UpstreamError) as error:
            return UseEvidence(self._asked, self.tokenizer.name, error.one_line, (), {}, (), {})
        if told.refused:
            return UseEvidence(self._asked, told.tokenizer, told.refused, (), {}, (), {})
        own = asker.own
        freely = {s.golden.name: self._freely(own, s) for s in self.samples if not forced[s.golden.name].complete}
        prompts = [self._readings(own, told, group) for group in self._groups()]
        bundle = Bundle(self.opened.artifact.path, tuple(own.script.calls))
        outputs = run_bundle(LocalRunner(), bundle).outputs if own.logits else {}
        answers = own.answers(outputs, self.ends)
        fed = {}
        for sample in self.samples:
            name = sample.golden.name
            ids = answers[freely[name]] if name in freely else forced[name].ids
            length = sample.prompt.length(self.opened.family.patches)
            fed[name] = Fed(length, ids, told.told[_by_ids(name)], told.told[_by_text(name)])
        return UseEvidence(
            self._asked,
            told.tokenizer,
            "",
            told.printed,
            fed,
            tuple(group.resolved(answers) for group in prompts),
            {name: asker.resolved(told.told[talk.name], wanted, answers) for name, (talk, wanted) in situated.items()},
        )

    @property
    def _asked(self) -> bool:
        return self.opened.request.target == OFFICIAL

    def _forced(self, sample: Sample) -> _Known:
        """What the golden conversation says of the free answer: it is the favoured tokens, until one is not the golden one."""
        at = next(n for n, one in enumerate(self.opened.golden.images) if one.name == sample.golden.name)
        logits = logits_of(self.made.conversations[at], self.outputs)
        if logits is None:
            return _Known((), complete=False)
        ids = favoured_ids(list(logits), self.ends)
        golden = sample.golden.ids
        parted = next((n for n, pair in enumerate(zip(ids, golden, strict=False)) if pair[0] != pair[1]), len(ids) - 1)
        known = ids[: parted + 1]
        return _Known(known, complete=bool(known) and (known[-1] in self.ends or len(known) == self.most(sample)))

    def _golden_talks(self) -> list[Talk]:
        """Every golden conversation by ids and by text."""
        form = self.opened.family.prompt
        bos = int(self.opened.tokenizer.adds_bos)
        talks = []
        for number, sample in enumerate(self.samples):
            question, most = sample.golden.question, self.most(sample)
            by_ids = (*self._ids(sample.prompt.before), Input(picture=number), *self._ids(sample.prompt.after))
            behind = form.after_image(question) if question else form.cue
            by_text = (Input(text=form.before_image), Input(picture=number), Input(text=behind))
            talks.append(_talk(_by_ids(sample.golden.name), by_ids, Settings(max_new_tokens=most)))
            talks.append(_talk(_by_text(sample.golden.name), by_text, Settings(max_new_tokens=most, num_bos=bos)))
        return talks

    def _ids(self, ids: Sequence[int]) -> tuple[Input, ...]:
        return ids_in_pieces(ids, self.opened.caller.text)

    def _situations(self, forced: Mapping[str, _Known]) -> tuple[Asker, dict[str, Situated]]:
        """The situations, with the golden conversation whose answer is known furthest, and another one."""
        order = sorted(range(len(self.samples)), key=lambda n: -self._known_length(n, forced))
        first, other = order[0], order[min(1, len(order) - 1)]
        patches = self.opened.family.patches
        head = self.samples[0]
        full = logits_of(self.made.full, self.outputs)
        asker = Asker(
            own=OwnAnswers(self.opened.caller, patches, self.limit),
            tokenizer=self.opened.tokenizer,
            form=self.opened.family.prompt,
            samples=self.samples,
            first=first,
            other=other,
            known={n: forced[self.samples[n].golden.name].ids for n in (first, other)},
            filling=filling_prompt(head.prompt, self.limit, patches),
            filled=() if full is None else favoured_ids(list(full), self.ends),
            room=LAST_TOKENS,
            brief=self.opened.family.large,
        )
        return asker, situations(asker)

    def _known_length(self, number: int, forced: Mapping[str, _Known]) -> int:
        known = forced[self.samples[number].golden.name]
        return len(known.ids) + (self.limit if known.complete else 0)

    def _freely(self, own: OwnAnswers, sample: Sample) -> int:
        return own.ask((sample.prompt.before, sample.image, sample.prompt.after), self.most(sample))

    def _groups(self) -> list[list[Sample]]:
        """Golden conversations with the same prompt."""
        groups: dict[object, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.golden.question, sample.prompt), []).append(sample)
        return list(groups.values())

    def _readings(self, own: OwnAnswers, told: Talks, group: list[Sample]) -> _Group:
        """What may have become of a prompt that was fed as text; our driver is asked where that is not plain."""
        patches = self.opened.family.patches
        head = group[0]
        heard = [
            s for s in group if _prompt_tokens(told.told[_by_text(s)]) >= 0
        ]  # an answer of bytes that are no text is not
        counts = {_prompt_tokens(told.told[_by_text(s)]) for s in heard}
        parted = [s for s in heard if _pieces(told, _by_ids(s)) != _pieces(told, _by_text(s))]
        if counts == {head.prompt.length(patches)} and not parted:
            return _Group(head.golden.question, group, [], [], [])
        most = LOOKED_AT_OF_LARGE if self.opened.family.large else LOOKED_AT
        looked_at = [*parted, *(s for s in heard if s not in parted)][:most]
        spelled = readings(self.opened.tokenizer, self.opened.family.prompt, head.golden.question, head.prompt)
        possible = [one for one in spelled if {one.prompt.length(patches)} == counts][:MOST_CANDIDATES]
        asked = [
            [own.ask((one.prompt.before, s.image, one.prompt.after), self.most(s, one.prompt)) for s in looked_at]
            for one in possible
        ]
        return _Group(head.golden.question, group, looked_at, possible, asked, patches)


@dataclass(frozen=True)
class _Known:
    """The beginning of a free answer; `complete` if it is all of it."""

    ids: tuple[int, ...]
    complete: bool


@dataclass(frozen=True)
class _Group:
    """A prompt, and the numbers of our driver's answers to each of its readings."""

    question: str
    samples: list[Sample]
    looked_at: list[Sample]
    possible: list[Reading]
    asked: list[list[int]]
    patches: int = 0

    def resolved(self, answers: Sequence[tuple[int, ...]]) -> FedPrompt:
        """With the answers."""
        names = [sample.golden.name for sample in self.looked_at]
        candidates = tuple(
            Candidate(
                one.deviations,
                set(one.deviations) <= RUNNERS_OWN,
                one.prompt.length(self.patches),
                {name: answers[number] for name, number in zip(names, numbers, strict=True)},
            )
            for one, numbers in zip(self.possible, self.asked, strict=True)
        )
        return FedPrompt(self.question, tuple(s.golden.name for s in self.samples), tuple(names), candidates)


def _talk(name: str, inputs: tuple[Input, ...], settings: Settings) -> Talk:
    return Talk(name, (Step("reset"), Step("generate", inputs, settings)))


def _by_ids(of: Sample | str) -> str:
    return f"ids: {of if isinstance(of, str) else of.golden.name}"


def _by_text(of: Sample | str) -> str:
    return f"text: {of if isinstance(of, str) else of.golden.name}"


def _prompt_tokens(told: Told) -> int:
    return told.said[-1].prompt_tokens if told.said else -1


def _pieces(told: Talks, name: str) -> tuple[str, ...]:
    said = told.told[name].said
    return said[-1].pieces if said else ()
