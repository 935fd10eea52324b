"""What ExecuTorch's own runner may answer otherwise: tokens, counts, errors, a dead process. The sound side is what it really answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.judging import results_of
from verifier.core.types import CheckResult
from verifier.families.tokens.readings import TRAILING
from verifier.measures.evidence import Evidence
from verifier.measures.use import Fed, Situation, UseEvidence
from verifier.runner.official import Said, Told

pytestmark = pytest.mark.xdist_group("faults")
CHECKS = ("use.answers", "use.tokens", "use.text", "use.turns")
ABORTED = Told("aborted", message="SIGABRT: Attempted to resize a static tensor")


def _use(evidence: Evidence) -> UseEvidence:
    assert isinstance(evidence.use, UseEvidence)
    return evidence.use


def _with(evidence: Evidence, **fields: object) -> Evidence:
    return replace(evidence, use=replace(_use(evidence), **fields))  # type: ignore[arg-type]


def _last(told: Told, change: Callable[[Said], Said]) -> Told:
    return replace(told, said=(*told.said[:-1], change(told.said[-1])))


def _refed(evidence: Evidence, change: Callable[[Fed], Fed], name: str = "blank") -> Evidence:
    fed = _use(evidence).fed
    return _with(evidence, fed=fed | {name: change(fed[name])})


def _resituated(evidence: Evidence, name: str, change: Callable[[Situation], Situation]) -> Evidence:
    situations = _use(evidence).situations
    return _with(evidence, situations=situations | {name: change(situations[name])})


def _one(check_id: str, evidence: Evidence, case: str) -> CheckResult:
    return next(result for result in results_of(check_id, evidence) if result.case == case)


def _wrong(said: Said) -> Said:
    return replace(said, pieces=(said.pieces[0], " wrong", *said.pieces[2:]))


def test_sound_use_passes(gathered: Evidence) -> None:
    """What the runner does to every file is a difference by design with its cost."""
    for check_id in CHECKS:
        assert {result.verdict for result in results_of(check_id, gathered)} == {"pass"}, check_id
    said = _one("use.tokens", gathered, "program").exception
    assert "20 of 29 prompts" in said
    assert "a blank behind the image" in said
    assert "blank" in _one("use.text", gathered, "program").exception


def test_another_token_is_named(gathered: Evidence) -> None:
    """With its place in the answer and in the cache."""
    broken = _refed(gathered, lambda fed: replace(fed, ids=_last(fed.ids, _wrong)))
    failed = _one("use.answers", broken, "blank")
    assert (failed.verdict, failed.step) == ("fail", "use")
    assert "gives ' wrong' at token 1 (position 682), our driver ' small'" in failed.message


def test_an_answer_that_does_not_end_is_named(gathered: Evidence) -> None:
    """The end token is missed."""
    longer = _refed(
        gathered, lambda fed: replace(fed, ids=_last(fed.ids, lambda s: replace(s, pieces=(*s.pieces, " A"))))
    )
    assert "gives ' A' at token 10" in _one("use.answers", longer, "blank").message


@pytest.mark.parametrize("check_id", ["use.answers", "use.text", "use.tokens"])
def test_a_dead_process_fails_its_case(check_id: str, gathered: Evidence) -> None:
    """With what it said last; the other images are judged."""
    broken = _refed(gathered, lambda fed: replace(fed, **{"ids" if check_id == "use.answers" else "text": ABORTED}))
    failed = [result for result in results_of(check_id, broken) if result.verdict != "pass"]
    assert [result.verdict for result in failed] == ["fail"]
    assert "Attempted to resize a static tensor" in failed[0].message


def test_a_number_of_tokens_that_nothing_explains_fails(gathered: Evidence) -> None:
    """As with another tokenizer's file."""
    broken = _refed(gathered, lambda fed: replace(fed, text=_last(fed.text, lambda s: replace(s, prompt_tokens=690))))
    failed = _one("use.tokens", broken, "program")
    assert failed.verdict == "fail"
    assert "hypotheses of this length explains the answer. Is tokenizer.model the checkpoint's?" in failed.message


def test_a_deviation_of_the_app_is_named(gathered: Evidence) -> None:
    """A hypothesis that explains number and answer, and is not what the runner does to every file."""
    prompts = _use(gathered).prompts
    found = next(prompt for prompt in prompts if prompt.candidates)
    one = next(c for c in found.candidates if c.runners_own)
    renamed = replace(one, deviations=(TRAILING,), runners_own=False)
    broken = _with(gathered, prompts=(replace(found, candidates=(renamed,)),))
    failed = _one("use.tokens", broken, "program")
    assert failed.verdict == "fail"
    assert f"{TRAILING}. Our driver answers the same to these ids" in failed.message


def test_answers_lost_by_text_have_a_budget(gathered: Evidence) -> None:
    """None by default; whoever ships such an app states one."""
    stated = replace(gathered, prices={"use.text_kept": 1.0})
    failed = _one("use.text", stated, "program")
    assert failed.verdict == "fail"
    assert "allows no less than a share of 1 to stay" in failed.message


def test_a_reset_that_leaves_something_is_found(gathered: Evidence) -> None:
    """The answer behind it is another one."""
    broken = _resituated(gathered, "reset", lambda one: replace(one, told=_last(one.told, _wrong)))
    assert "the answer differs from our driver's at token 1" in _one("use.turns", broken, "reset").message


def test_an_error_is_expected_or_it_is_not(gathered: Evidence) -> None:
    """A prompt that is too long must not be answered, a second turn must."""
    refused = Said((), -1, -1, "Generation failed: no room", 0.0)
    answered = Said((" A",), 800, 0, "", 0.0)
    broken = _resituated(
        _resituated(gathered, "second turn", lambda one: replace(one, told=_last(one.told, lambda _: refused))),
        "a prompt that is too long",
        lambda one: replace(one, told=_last(one.told, lambda _: answered)),
    )
    assert "the call ends in an error: Generation failed: no room" in _one("use.turns", broken, "second turn").message
    assert "expected an error" in _one("use.turns", broken, "a prompt that is too long").message
    assert [r.verdict for r in results_of("use.turns", broken)].count("fail") == 2


def test_a_dead_process_fails_its_situation(gathered: Evidence) -> None:
    """An error is right there, an abort is not."""
    broken = _resituated(gathered, "an empty text", lambda one: replace(one, told=ABORTED))
    assert _one("use.turns", broken, "an empty text").verdict == "fail"


def test_a_refused_program_is_not_verified_for_who_asked(gathered: Evidence) -> None:
    """Of a run on another target it is a skip that says why."""
    refused = _with(gathered, refused="Failed to load tokenizer", fed={}, prompts=(), situations={})
    for check_id in CHECKS:
        assert {r.verdict for r in results_of(check_id, refused)} == {"skipped"}
        asked = results_of(check_id, _with(refused, asked=True))
        assert {r.verdict for r in asked} == {"error"}
        assert "Failed to load tokenizer" in asked[0].message


@pytest.mark.parametrize(("at", "verdict"), [(0, "skipped"), (3, "pass")])
def test_an_id_without_a_piece_ends_the_comparison(gathered: Evidence, at: int, verdict: str) -> None:
    """A random model may answer with one: the runner prints nothing for it. What comes before it is compared."""
    nameless = len(_use(gathered).printed) + 5

    def answered(fed: Fed) -> Fed:
        said = lambda one: replace(one, pieces=(*one.pieces[:at], *one.pieces[at + 1 :]))  # noqa: E731
        return replace(fed, own=(*fed.own[:at], nameless, *fed.own[at + 1 :]), ids=_last(fed.ids, said))

    evidence = _refed(gathered, answered)
    assert _one("use.answers", evidence, "blank").verdict == verdict
    if at:
        wrong = _refed(evidence, lambda fed: replace(fed, ids=_last(fed.ids, _wrong)))
        assert _one("use.answers", wrong, "blank").verdict == "fail"
