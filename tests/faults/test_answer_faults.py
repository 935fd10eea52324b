"""Faults that show in answers: wrong tokens, ties, the quantized model's opinion, and an image of the user's own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.faults.judging import results_of
from tests.support import EMBEDDED_PTE
from verifier.checks.greedy import beyond_noise
from verifier.checks.registry import select
from verifier.core.types import Missing
from verifier.gather.opening import Request, open_request
from verifier.gather.second_look import QuantizedRung
from verifier.measures import evidence
from verifier.pipeline import second_look

pytestmark = pytest.mark.xdist_group("faults")
UNASKED = Missing("no check asked for it", "unasked")


def _verdicts(check_id: str, broken: evidence.Evidence) -> set[str]:
    return {result.verdict for result in results_of(check_id, broken)}


def test_wrong_token_fails_where_the_reference_is_sure(gathered: evidence.Evidence) -> None:
    """The winner and the runner-up swapped at one token."""
    case = max(gathered.cases, key=lambda c: min(c.sample.golden.margins))
    at = gathered.cases.index(case)
    logits = np.array(case.logits)
    order = logits[0].argsort()
    logits[0, order[-1]], logits[0, order[-2]] = logits[0, order[-2]], logits[0, order[-1]]
    cases = list(gathered.cases)
    cases[at] = replace(case, logits=logits, quantized={0: case.sample.golden.ids[0]})
    broken = replace(gathered, cases=tuple(cases))
    failed = [result for result in results_of("greedy.golden", broken) if result.verdict == "fail"]
    assert [result.case for result in failed] == [case.sample.golden.name]
    position = case.sample.prompt.length(gathered.patches) - 1
    assert f"at token 0 (position {position})" in failed[0].message
    assert "The eager model with the recipe's quantization gives" in failed[0].message
    assert "step lowering or kernel" in failed[0].message


def test_the_quantized_rung_is_asked_about_wrong_tokens(gathered: evidence.Evidence) -> None:
    """It favours the golden tokens of a sound program, whatever the program favours there."""
    case, ids = gathered.cases[0], gathered.cases[0].sample.golden.ids
    assert case.logits is not None
    opened = open_request(Request(EMBEDDED_PTE, checks=("greedy.golden",)))
    length = case.sample.prompt.length(gathered.patches) + len(ids)
    rung = QuantizedRung(opened, UNASKED, opened.family.definition(max_len=length), case.sample)
    assert rung.tokens(case, (0, 2)) == {0: ids[0], 2: ids[2]}
    wrong = replace(case, logits=np.roll(case.logits, 1, axis=-1))
    assert rung.tokens(wrong, (0, 2)) == {0: ids[0], 2: ids[2]}
    assert rung.tokens(replace(case, vision=None), (0, 2)) == {}


def test_tie_of_the_reference_is_nobodys_fault(gathered: evidence.Evidence) -> None:
    """Where fp32 is undecided to a thousandth of a logit, another machine's fp32 may say otherwise; elsewhere it may not."""
    case = gathered.cases[0]
    logits = np.array(case.expected.logits)
    order = logits[0].argsort()
    logits[0, order[-1]], logits[0, order[-2]] = logits[0, order[-2]], logits[0, order[-1]]
    parted = replace(case, expected=replace(case.expected, logits=logits))
    alone = replace(gathered, subjects=replace(gathered.subjects, images=(case.sample.golden.name,)))
    assert _verdicts("greedy.golden", replace(alone, cases=(parted,))) == {"error"}
    golden = case.sample.golden
    tied = replace(golden, margins=(1e-4, *golden.margins[1:]))
    undecided = replace(parted, sample=replace(case.sample, golden=tied))
    assert _verdicts("greedy.golden", replace(alone, cases=(undecided,))) == {"pass"}


def test_wrong_answer_about_the_users_image_fails(gathered: evidence.Evidence) -> None:
    """The user's image is judged as the golden ones are; without an image nothing was verified."""
    assert _verdicts("greedy.image", gathered) == {"error"}
    case = gathered.cases[0]
    assert _verdicts("greedy.image", replace(gathered, user_case=case)) == {"pass"}
    assert case.logits is not None
    wrong = case.logits.copy()
    sure = int(np.argmax(case.sample.golden.margins))
    wrong[sure, int(wrong[sure].argmin())] = wrong[sure].max() + 1
    assert _verdicts("greedy.image", replace(gathered, user_case=replace(case, logits=wrong))) == {"fail"}


def test_recipes_own_noise_about_the_users_image_is_no_fault(gathered: evidence.Evidence) -> None:
    """A picture without bands: a wrong token passes if the eager model with the recipe's quantization says it too and the image tokens
    are as near to fp32's as a golden image's may be. Either alone is not enough, and a golden image has bands of its own."""
    case = gathered.cases[0]
    assert case.logits is not None and case.vision is not None
    wrong = case.logits.copy()
    sure = int(np.argmax(case.sample.golden.margins))
    said = int(wrong[sure].argmin())
    wrong[sure, said] = wrong[sure].max() + 1
    other = replace(case, logits=wrong, quantized={sure: said})
    assert _verdicts("greedy.image", replace(gathered, user_case=other)) == {"pass"}
    (result,) = results_of("greedy.image", replace(gathered, user_case=other))
    assert "1 of them where the recipe's quantization alone changes the token" in result.message
    assert "fail" in _verdicts("greedy.golden", replace(gathered, cases=(other, *gathered.cases[1:]), user_case=None))
    noisy = replace(
        other,
        vision=case.vision
        + np.float32(case.vision.std()) * (np.arange(case.vision.size).reshape(case.vision.shape) % 2),
    )
    assert _verdicts("greedy.image", replace(gathered, user_case=noisy)) == {"fail"}
    unlike = replace(other, quantized={sure: said + 1})
    assert _verdicts("greedy.image", replace(gathered, user_case=unlike)) == {"fail"}


def test_wrong_token_without_bands_is_a_price_if_the_quantized_model_says_it(gathered: evidence.Evidence) -> None:
    """Where fp32 is sure: the recipe's own token passes, another one fails. Where fp32 is undecided nobody is asked."""
    case = gathered.cases[0]
    assert case.logits is not None
    name, sure = case.sample.golden.name, int(np.argmax(case.sample.golden.margins))
    wrong = case.logits.copy()
    said = int(wrong[sure].argmin())
    wrong[sure, said] = wrong[sure].max() + 1
    subjects = replace(gathered.subjects, images=(name,))
    bare = replace(gathered, tolerances=Missing("never calibrated", "verifier"), subjects=subjects)

    def verdicts(case: evidence.Case) -> set[str]:
        return _verdicts("greedy.golden", replace(bare, cases=(case, *gathered.cases[1:])))

    assert verdicts(replace(case, logits=wrong, quantized={sure: said})) == {"pass"}
    assert verdicts(replace(case, logits=wrong, quantized={sure: said + 1})) == {"fail"}
    assert verdicts(replace(case, logits=wrong)) == {"fail"}
    flat = replace(case.expected, logits=(1e-3 * case.expected.logits).astype(np.float32))
    assert verdicts(replace(case, logits=wrong, expected=flat)) == {"pass"}


class _Rung:
    """A quantized rung that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.priced = 0

    def tokens(self, _case: object, places: tuple[int, ...]) -> dict[int, int]:
        """Token 7 everywhere."""
        self.asked.append(places)
        return dict.fromkeys(places, 7)

    def rounding_db(self) -> float:
        """Some decibels."""
        self.priced += 1
        return 30.0


@pytest.mark.parametrize(("checks", "asks"), [("greedy.golden", True), ("greedy.free", False)])
def test_the_second_look_is_for_checks_that_need_it(gathered: evidence.Evidence, checks: str, asks: bool) -> None:
    """The first wrong token of a golden image, all of the user's own; nothing where no check judges tokens, and no price of rounding where ties explain all."""
    case = gathered.cases[0]
    assert case.logits is not None
    wrong = replace(case, logits=np.roll(case.logits, 1, axis=-1))
    places = beyond_noise(gathered, wrong)
    assert len(places) > 1
    rung: Any = _Rung()
    opened: Any = SimpleNamespace(checks=select((checks,)))
    seen = second_look(replace(gathered, cases=(wrong, *gathered.cases[1:]), user_case=wrong), rung, opened)
    assert seen.user_case is not None
    found = (tuple(seen.cases[0].quantized), tuple(seen.user_case.quantized))
    assert found == ((places[:1], places) if asks else ((), ()))
    assert seen.cases[1].quantized == {} and (rung.priced, seen.rounding_db) == (0, gathered.rounding_db)


def _saying_the_same(gathered: evidence.Evidence) -> tuple[evidence.Evidence, dict[str, Any]]:
    """As of a checkpoint that answers all images alike, with the reference's own logits for a perfect program's."""
    first = gathered.cases[0].sample
    cases = []
    for case in gathered.cases:
        golden = replace(case.sample.golden, ids=first.golden.ids)
        expected = replace(case.expected, logits=case.expected.logits[: len(first.golden.ids)])
        cases.append(replace(case, sample=replace(case.sample, golden=golden, prompt=first.prompt), expected=expected))
    logits = {case.sample.golden.name: case.expected.logits for case in cases}
    return replace(gathered, cases=tuple(cases)), {name: logits[name] for name in gathered.runtime.free}


def _answering(given: evidence.Evidence, free: dict[str, Any]) -> Any:
    (result,) = results_of("greedy.images", replace(given, runtime=replace(given.runtime, free=free)))
    return result


def test_images_are_told_apart_by_logits_where_answers_are_alike(gathered: evidence.Evidence) -> None:
    """As far apart as fp32's are, noise and all: the picture is used."""
    given, free = _saying_the_same(gathered)
    rng = np.random.default_rng(0)
    noisy = {name: one + rng.normal(scale=one.std(), size=one.shape).astype(one.dtype) for name, one in free.items()}
    assert (made := _answering(given, free)).verdict == "pass"
    assert made.measured["apart"] == pytest.approx(1.0)
    assert _answering(given, noisy).verdict == "pass"


def test_program_that_does_not_look_at_the_image_fails(gathered: evidence.Evidence) -> None:
    """The logits of one image for all, or of an earlier image for the last, with noise of a hundredth too."""
    given, free = _saying_the_same(gathered)
    first, second, last = free
    ignoring = dict.fromkeys(free, free[first])
    rng = np.random.default_rng(0)
    late = free | {last: free[second] + rng.normal(scale=0.01, size=free[second].shape).astype(np.float32)}
    for broken in (ignoring, late):
        made = _answering(given, broken)
        assert made.verdict == "fail"
        assert "as far apart as those of fp32" in made.message


def test_reference_that_does_not_look_at_the_image_decides_nothing(gathered: evidence.Evidence) -> None:
    """The same logits for every image in fp32: not verified, whatever the program says."""
    given, free = _saying_the_same(gathered)
    blind = [
        replace(case, expected=replace(case.expected, logits=given.cases[0].expected.logits)) for case in given.cases
    ]
    assert _answering(replace(given, cases=tuple(blind)), free).verdict == "error"


def test_same_answers_of_a_sound_program_are_no_failure(gathered: evidence.Evidence) -> None:
    """Where fp32 tells two images apart by a token that quantization moves, the logits still do."""
    given, free = _saying_the_same(gathered)
    cases = list(given.cases)
    golden = cases[0].sample.golden
    other = replace(golden, ids=(*golden.ids[:-2], 5, golden.ids[-1]))
    cases[0] = replace(cases[0], sample=replace(cases[0].sample, golden=other))
    alike = {name: np.where(np.arange(one.shape[1]) == 7, 100.0, one).astype(np.float32) for name, one in free.items()}
    assert _answering(replace(given, cases=tuple(cases)), alike).verdict == "pass"
