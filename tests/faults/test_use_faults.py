"""Faults in the use of a sound program: driver, prompt, temperature (numbers are those of `verifier.faults.rows`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.faults.judging import results_of
from tests.support import CALLER
from verifier.core.types import CheckResult, Prompt, Segment
from verifier.families import driver, prompts
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.samples import Sample
from verifier.families.tokens.records import Mark, Part
from verifier.families.tokens.second_encoder import SecondEncoder
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.in_use import encoded_in_stretches
from verifier.faults.tokenizer_forms import as_transformers_4
from verifier.gather.conversations import ConversationBundle, collect_cases, conversation_bundle, logits_of, run_bundle
from verifier.golden.records import Expectation
from verifier.measures import prompts as measured
from verifier.measures.evidence import Case, Evidence
from verifier.measures.prompts import measure_prompts
from verifier.measures.tokens import measure_tokens
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import OutputOf

pytestmark = pytest.mark.xdist_group("faults")
COUNT = 3


def _only(clean: Evidence, cases: tuple[Case, ...]) -> Evidence:
    names = tuple(case.sample.golden.name for case in cases)
    return replace(clean, cases=cases, subjects=replace(clean.subjects, images=names))


def _first_failure(check_id: str, broken: Evidence) -> CheckResult:
    return next(result for result in results_of(check_id, broken) if result.verdict == "fail")


def _scripted(clean: Evidence, change: Callable[[Prompt], Prompt] = lambda given: given) -> Evidence:
    """The first conversations as the driver scripts them now, with prompts changed; nothing is run."""
    samples = [replace(case.sample, prompt=change(case.sample.prompt)) for case in clean.cases[:COUNT]]
    made = _made(clean, samples)
    cases = [
        replace(case, sample=sample, calls=made.bundle.calls[first:last])
        for case, sample, (first, last) in zip(clean.cases, samples, made.ranges, strict=False)
    ]
    return _only(clean, tuple(cases))


def _made(clean: Evidence, samples: list[Sample]) -> ConversationBundle:
    vocabulary = clean.geometry.text.vocabulary
    return conversation_bundle(clean.program, CALLER, samples, patches=clean.patches, vocabulary=vocabulary)


def _run(clean: Evidence) -> Evidence:
    """The same conversations run for real."""
    samples = [case.sample for case in clean.cases[:COUNT]]
    made = _made(clean, samples)
    result = run_bundle(LocalRunner(), made.bundle)
    answers, side_px = [case.expected for case in clean.cases[:COUNT]], clean.geometry.vision.image_px
    cases = collect_cases(made, result, samples, answers, side_px=side_px)
    free = {name: logits_of(talk, result.outputs) for name, talk in made.free.items()}
    full = replace(clean.runtime.full, logits=logits_of(made.full, result.outputs), position=made.full.position)
    again = logits_of(made.again, result.outputs)
    runtime = replace(clean.runtime, conversations=result, free=free, full=full, again=again)
    return _only(replace(clean, runtime=runtime), cases)


def test_sound_use_passes(gathered: Evidence) -> None:
    """The clean side of the tests below: every check of use passes, scripted anew and run."""
    again = _run(_scripted(gathered))
    for check_id in (
        "splice.tokens",
        "splice.positions",
        "greedy.free",
        "greedy.images",
        "greedy.limit",
        "greedy.history",
    ):
        assert {r.verdict for r in results_of(check_id, again)} == {"pass"}, check_id
    for check_id in (
        "splice.prompts",
        "preprocess.processor",
        "preprocess.files",
        "preprocess.sizes",
        "preprocess.pixels",
    ):
        assert {r.verdict for r in results_of(check_id, gathered)} == {"pass"}, check_id


def _prefill(fault: Callable[..., tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    right = driver.prefill
    monkeypatch.setattr(driver, "prefill", lambda *a, **k: fault(right, *a, **k))


def test_17_575_slots_for_576_features(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """The text behind the image starts one position early."""
    _prefill(lambda right, *a, patches, **k: right(*a, patches=patches - 1, **k), monkeypatch)
    failed = _first_failure("splice.positions", _scripted(gathered))
    start = len(gathered.cases[0].sample.prompt.before) + gathered.patches
    assert (failed.step, failed.where and failed.where.index) == ("mapping", (start - 1,))
    assert f"from position {start - 1}, expected" in failed.message


def test_18_features_in_wrong_slots(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """The image comes one token early: the last token before it follows it."""
    right = driver.splice

    def shifted(script: driver.Script, segments: tuple[Segment, ...], *a: object, **k: object) -> driver.Spliced:
        before, image, after = segments
        assert before is not None and after is not None
        return right(script, (before[:-1], image, (before[-1], *after)), *a, **k)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "splice", shifted)
    failed = _first_failure("splice.positions", _scripted(gathered))
    slots = len(gathered.cases[0].sample.prompt.before)
    assert f"decoder call 0 covers {slots - 1} tokens from position 0, expected {slots}" in failed.message


def test_19_bos_omitted(gathered: Evidence) -> None:
    """No BOS at all."""
    failed = _first_failure("splice.tokens", _scripted(gathered, lambda p: replace(p, before=p.before[1:])))
    assert failed.step == "mapping"
    assert "BOS stands at [] of the prompt, expected once, at 0" in failed.message


def test_20_bos_again_after_the_image(gathered: Evidence) -> None:
    """BOS per segment."""
    failed = _first_failure("splice.tokens", _scripted(gathered, lambda p: replace(p, after=(1, *p.after))))
    assert f"BOS stands at [0, {len(gathered.cases[0].sample.prompt.before)}]" in failed.message


def test_21_prompt_prefilled_twice(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """The whole prompt goes in, and then again from position 0."""

    def twice(right: Callable[..., tuple[int, int, int]], *a: object, **k: object) -> tuple[int, int, int]:
        right(*a, **k)
        return right(*a, **k)

    _prefill(twice, monkeypatch)
    failed = _first_failure("splice.positions", _scripted(gathered))
    assert "decoder call 3 covers" in failed.message
    assert "from position 0" in failed.message


def test_22_stray_blank_in_the_template(gathered: Evidence) -> None:
    """Two blanks before ASSISTANT: in the ids that are fed, one in Hugging Face's."""
    stray = tuple(Tokenizer(EMBEDDED).encode_behind("\nDescribe the image.  ASSISTANT:"))
    failed = _first_failure("splice.tokens", _scripted(gathered, lambda p: replace(p, after=stray)))
    assert "Check template spacing" in failed.message
    assert failed.where is not None and failed.where.index is not None
    assert failed.where.index[0] > len(gathered.cases[0].sample.prompt.before)


def _with(clean: Evidence, tokenizer: Tokenizer) -> Evidence:
    """Prompts and facts of a tokenizer as they are measured now."""
    measured_prompts = measure_prompts(
        tokenizer,
        PROMPT,
        [case.sample.golden.question for case in clean.cases],
        CALLER,
        patches=clean.patches,
        limit=clean.program.max_seq_len,
    )
    tokens = measure_tokens(tokenizer, vocabulary=clean.geometry.text.vocabulary, answers=(), logits=())
    return replace(clean, tokens=tokens, prompts=measured_prompts)


def _published(clean: Evidence, folder: Path, change: Callable[[Prompt], Prompt] = lambda given: given) -> Evidence:
    """The conversations with the tokenizer in the form that the 7B was published in, scripted and not run."""
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer.model"):
        shutil.copy(EMBEDDED / name, folder / name)
    as_transformers_4(folder)
    tokenizer = Tokenizer(folder)
    questions = [case.sample.golden.question for case in clean.cases[:COUNT]]
    given = iter([prompts.caption_prompt(tokenizer, PROMPT, question) for question in questions])
    return _scripted(_with(clean, tokenizer), lambda _given: change(next(given)))


@pytest.mark.parametrize("form", ["own", "published"])
def test_22_and_61_blank_behind_the_image(form: str, gathered: Evidence, tmp_path: Path) -> None:
    """A blank more fails for llava_tiny's own tokenizer, a blank less for the published form; each form's own prompt passes."""
    blank = Tokenizer(EMBEDDED).encode("\n")[0]

    def changed(given: Prompt) -> Prompt:
        return replace(given, after=(blank, *given.after) if form == "own" else given.after[1:])

    made = partial(_published, gathered, tmp_path) if form == "published" else partial(_scripted, gathered)
    assert {r.verdict for r in results_of("splice.tokens", made())} == {"pass"}
    failed = _first_failure("splice.tokens", made(changed))
    expected = 936 if form == "published" else 13
    assert f"Hugging Face has [{expected}]" in failed.message
    assert "what follows a special token" in failed.message
    assert failed.where is not None
    assert failed.where.index == (len(gathered.cases[0].sample.prompt.before) + 1,)


@pytest.mark.parametrize("blank", [True, False], ids=["blank", "no blank"])
def test_61_blank_in_dialogues(
    blank: bool, monkeypatch: pytest.MonkeyPatch, gathered: Evidence, tmp_path: Path
) -> None:
    """Each stretch of text encoded by itself: with a blank in front it is wrong for the own form and right for the published one; without
    one it is the other way round."""
    monkeypatch.setattr(measured, "dialogue_segments", encoded_in_stretches(prompts.dialogue_segments, blank=blank))
    failed = {}
    for form, evidence_ in (
        ("own", _with(gathered, Tokenizer(EMBEDDED))),
        ("published", _published(gathered, tmp_path)),
    ):
        failed[form] = {r.case for r in results_of("splice.prompts", evidence_) if r.verdict != "pass"}
    wrong, right = ("own", "published") if blank else ("published", "own")
    assert {"empty", "two turns", "unicode", "two images"} <= failed[wrong]
    assert "text only" not in failed[wrong]
    assert failed[right] == set()


def test_users_text_is_no_image_slot(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """A tokenizer that reads `<image>` in the user's text as the image token."""
    right = Tokenizer.encode_parts

    def special(self: Tokenizer, parts: Iterable[Part], *, bos: bool = True) -> list[int]:
        made: list[Part] = []
        for part in parts:
            pieces = part.split("<image>") if isinstance(part, str) else [part]
            made += [each for piece in pieces for each in (Mark.IMAGE, piece)][1:]
        return right(self, made, bos=bos)

    monkeypatch.setattr(Tokenizer, "encode_parts", special)
    misread = _with(gathered, Tokenizer(EMBEDDED))
    assert {r.case for r in results_of("splice.prompts", misread) if r.verdict == "fail"} == {"literal <image>"}


def test_references_that_part_are_no_failure(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """transformers and the second encoder disagree about a prompt: nobody is to blame, and nothing is verified."""
    right = SecondEncoder.encode
    monkeypatch.setattr(SecondEncoder, "encode", lambda self, parts: [*right(self, parts), 5])
    parted = _with(gathered, Tokenizer(EMBEDDED))
    results = [r for r in results_of("splice.tokens", parted) if "without a question" not in r.message]
    verdicts = {r.verdict for r in results}
    assert "error" in verdicts
    assert "the reference tokenizers give different ids for this prompt" in results[0].message


def test_prompt_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """A driver that refuses what fits is found out."""

    def tight(*a: object, **k: object) -> object:
        raise driver.UsageError("too long", got="701 tokens")

    monkeypatch.setattr(measured, "splice", tight)
    refused = _with(gathered, Tokenizer(EMBEDDED))
    failed = {r.case for r in results_of("splice.prompts", refused) if r.verdict == "fail"}
    assert failed == {r.case for r in results_of("splice.prompts", gathered)} - {"two images"}


def test_24_image_embedding_of_the_last_request(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """Every conversation is fed with the first image's tokens: named by the calls, and by the answers."""
    right = driver.splice

    def cached(script: driver.Script, *a: object, **k: object) -> driver.Spliced:
        made = right(script, *a, **k)  # type: ignore[arg-type]
        for number, call in enumerate(script.calls):
            if call.inputs and isinstance(call.inputs[0], OutputOf) and call.inputs[0].call == made.vision[0]:
                script.calls[number] = replace(call, inputs=(OutputOf(0), *call.inputs[1:]))
        return made

    monkeypatch.setattr(driver, "splice", cached)
    failed = _first_failure("splice.positions", _scripted(gathered))
    assert failed.case == gathered.cases[1].sample.golden.name
    assert "The image of an earlier request is used again" in failed.message
    said = _first_failure("greedy.images", _run(gathered))
    assert "are the same" in said.message


def test_40_cache_kept_between_prompts(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """The second conversation goes on where the first one ended."""
    right, ended = driver.position_array, [0]

    def kept(position: int) -> np.ndarray:
        if position == 0:
            ended.append(100)
        return right(position + sum(ended[2:]))

    monkeypatch.setattr(driver, "position_array", kept)
    failed = _first_failure("splice.positions", _scripted(gathered))
    assert failed.case == gathered.cases[1].sample.golden.name
    assert "from position 100, expected" in failed.message


@pytest.mark.parametrize(("advance", "at"), [(0, 0), (2, 2)], ids=["not advanced", "advanced twice"])
def test_52_start_position_while_decoding(
    advance: int, at: int, monkeypatch: pytest.MonkeyPatch, gathered: Evidence
) -> None:
    """`input_pos` stays, or moves by two, from the second answer token on."""
    right = driver._step

    def step(script: driver.Script, ids: object, position: int) -> int:
        length = gathered.cases[0].sample.prompt.length(gathered.patches)
        return right(script, ids, length + (position - length) * advance)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "_step", step)
    failed = _first_failure("splice.positions", _scripted(gathered))
    length = gathered.cases[0].sample.prompt.length(gathered.patches)
    assert f"from position {length + at}, expected 1 from {length + 1}" in failed.message


def test_56_temperature_left_at_its_default(monkeypatch: pytest.MonkeyPatch, gathered: Evidence) -> None:
    """The token that is fed back is sampled, not favoured."""
    rng = np.random.default_rng(0)
    vocabulary = gathered.geometry.text.vocabulary
    monkeypatch.setattr(driver, "favoured", lambda _logits: driver.ids_array([int(rng.integers(3, vocabulary))]))
    failed = _first_failure("greedy.free", _run(gathered))
    assert failed.step == "mapping"
    assert "temperature must be 0" in failed.message


def test_answer_that_does_not_stop_at_the_limit_fails(gathered: Evidence) -> None:
    """One token more than there is room for, one less, a NaN at the end, and no answer."""
    full = gathered.runtime.full
    assert full.logits is not None
    poisoned = full.logits.copy()
    poisoned[-1, 7] = np.nan
    for changed in (
        replace(full, position=full.position + 1),
        replace(full, logits=full.logits[:-1]),
        replace(full, logits=poisoned),
        replace(full, logits=None),
    ):
        failed = _first_failure("greedy.limit", replace(gathered, runtime=replace(gathered.runtime, full=changed)))
        assert failed.where is not None
        assert failed.where.index == (gathered.program.max_seq_len - 1,)


def test_published_answer_is_compared(gathered: Evidence) -> None:
    """The program's answer to the user's image begins as published, or parts from it at a place that is named."""
    case = gathered.cases[0]
    text = case.sample.golden.text
    published = Expectation("m", "ASSISTANT:", 768, "a picture; not here", text[:12], "a paper")
    given = replace(gathered, user_case=case, expectation=published)
    assert [r.verdict for r in results_of("greedy.expected", given)] == ["pass"]
    other = replace(published, begins_with=text[:8] + "?")
    failed = _first_failure("greedy.expected", replace(given, expectation=other))
    assert "differs from the published answer at character 8" in failed.message
    for missing in (replace(given, expectation=None), replace(given, user_case=None)):
        assert [r.verdict for r in results_of("greedy.expected", missing)] == ["error"]


def test_history_that_shows_fails(gathered: Evidence) -> None:
    """The first conversation answers otherwise behind others."""
    assert gathered.runtime.again is not None
    moved = gathered.runtime.again.copy()
    moved[3] += np.float32(1e-5)
    broken = replace(gathered, runtime=replace(gathered.runtime, again=moved))
    failed = _first_failure("greedy.history", broken)
    position = gathered.cases[0].sample.prompt.length(gathered.patches) + 2
    assert failed.where is not None and failed.where.index == (position,)


def test_dialogue_is_spelled_as_hugging_face_spells_it() -> None:
    """Segments of two turns with an image: BOS first, EOS behind the first answer, the image between text."""
    turns = (prompts.Turn("What?", answer="A cat."), prompts.Turn("Why?", images=0))
    tokenizer = Tokenizer(EMBEDDED)
    segments = prompts.dialogue_segments(tokenizer, PROMPT, turns)
    assert [segment is None for segment in segments] == [False, True, False]
    assert segments[0] is not None and segments[2] is not None
    assert segments[0][0] == tokenizer.bos_id
    assert segments[2].count(tokenizer.eos_id) == 1
    spelled = tokenizer.spelled(PROMPT.dialogue_parts(turns))
    assert spelled.endswith("ASSISTANT: A cat.</s>USER: Why? ASSISTANT:")
