"""`pixels.sizes` and `pixels.kept`: an app that is named fails over its budget and for sizes that the program refuses; others fail nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from platform import machine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.bench import eyes as bench
from verifier.checks.registry import CHECKS
from verifier.core.types import CheckResult, Missing, Recipe
from verifier.families.conventions import EXECUTORCH_LLAVA, OPTIMUM, Convention
from verifier.families.pixels.apps.registry import APPS
from verifier.gather.eyes import Chosen, prepared_sizes, try_sizes
from verifier.measures.evidence import Subjects
from verifier.measures.eyes import AppEyes, EyesEvidence, Seen, SizeTried
from verifier.record.figures import figures
from verifier.report.words import eyes_rows, next_command
from verifier.runner.protocol import Bundle, Result

SQUARE, ODD = (336, 336), (336, 189)
REFUSED = SizeTried(ODD, "error: 0x12")
TAKEN = SizeTried(SQUARE, "")


def _results(
    check: str, eyes: EyesEvidence | Missing, *apps: str, convention: Convention = EXECUTORCH_LLAVA, **prices: float
) -> list[CheckResult]:
    evidence: Any = SimpleNamespace(
        eyes=eyes, subjects=Subjects((), (), (), (), apps), prices=prices, recipe=Recipe(), convention=convention
    )
    return next(c for c in CHECKS if c.id == check).results(evidence)


def _eyes(*seen: Seen, tried: tuple[SizeTried, ...] | Missing = (TAKEN, REFUSED)) -> EyesEvidence:
    pictures = {f"picture_{number}": one for number, one in enumerate(seen)}
    return EyesEvidence({"cpp": AppEyes("C++ example", pictures, (SQUARE, ODD))}, (SQUARE,), tried, "some pictures")


KEPT, LOST = Seen(SQUARE, tokens_db=30.0, same=True), Seen(SQUARE, tokens_db=3.0, same=False)


def test_sizes_of_an_app_that_is_not_named_fail_nothing() -> None:
    """The program takes what the gate prepares."""
    (result,) = _results("pixels.sizes", _eyes(KEPT))
    assert (result.case, result.verdict) == ("prepared", "pass")


def test_sizes_of_a_named_app_that_the_program_refuses_are_named() -> None:
    """And the app is accused, not the bytes."""
    _, result = _results("pixels.sizes", _eyes(KEPT), "cpp")
    assert (result.verdict, result.step) == ("fail", "use")
    assert "1 of 2 sizes" in result.message
    assert "336 x 189" in result.message


def test_bytes_do_not_fit_a_program_that_takes_normalized_pixels() -> None:
    """The gate's own preparation normalizes them; what an app does is not known."""
    prepared, app = _results("pixels.sizes", _eyes(KEPT, tried=(TAKEN, SizeTried(ODD, ""))), "cpp", convention=OPTIMUM)
    assert (prepared.verdict, app.verdict) == ("pass", "error")


def test_a_prepared_size_that_is_refused_fails_without_an_app() -> None:
    """A call that ends in an error."""
    (result,) = _results("pixels.sizes", _eyes(KEPT, tried=(SizeTried(SQUARE, "error"),)))
    assert (result.verdict, result.accuses) == ("fail", "calls")


@pytest.mark.parametrize("tried", [(), (TAKEN,), Missing("the runner broke", "verifier")])
def test_sizes_that_nobody_tried_do_not_pass(tried: Any) -> None:
    """Of a named app."""
    assert _results("pixels.sizes", _eyes(KEPT, tried=tried), "cpp")[-1].verdict == "error"


@pytest.mark.parametrize(("lost", "verdict"), [(0, "pass"), (1, "pass"), (2, "fail"), (10, "fail")])
def test_answers_of_a_named_app_have_a_budget(lost: int, verdict: str) -> None:
    """One of ten."""
    (result,) = _results("pixels.kept", _eyes(*[LOST] * lost, *[KEPT] * (10 - lost)), "cpp")
    assert result.verdict == verdict
    assert f"{lost} of 10" in result.message


def test_a_picture_that_cannot_be_fed_is_lost() -> None:
    """Because the program refuses its size, or the app its channels."""
    eyes = _eyes(Seen(ODD, tokens_db=50.0, same=True), Seen(refusal="four channels"), KEPT)
    score = eyes.score("cpp")
    assert (score.asked, score.aborts, score.lost) == (3, 2, 2)
    assert _results("pixels.kept", eyes, "cpp")[0].verdict == "fail"


def test_a_user_states_the_budget() -> None:
    """`--budget kept=0.5`."""
    eyes = _eyes(LOST, KEPT)
    assert _results("pixels.kept", eyes, "cpp")[0].verdict == "fail"
    assert _results("pixels.kept", eyes, "cpp", **{"pixels.kept": 0.5})[0].verdict == "pass"
    assert "--budget kept=0.5" in _results("pixels.kept", eyes, "cpp")[0].message


def test_no_answer_is_no_pass() -> None:
    """No picture, and pictures of which nobody asked."""
    assert _results("pixels.kept", _eyes(), "cpp")[0].verdict == "error"
    assert _results("pixels.kept", _eyes(Seen(SQUARE)), "cpp")[0].verdict == "error"
    assert _results("pixels.kept", _eyes(KEPT), "ios")[0].verdict == "error"
    assert _results("pixels.kept", Missing("not gathered", "verifier"), "cpp")[0].verdict == "error"


def _opened(run: Callable[..., Result], *, isa: str = machine(), apps: tuple[str, ...] = ()) -> Any:
    """A request whose runner is scripted."""
    return SimpleNamespace(
        family=SimpleNamespace(pixels=SimpleNamespace(side_px=336), large=False),
        recipe=Recipe(),
        request=SimpleNamespace(apps=apps),
        runner=SimpleNamespace(isa=isa, run=run),
        caller=SimpleNamespace(image=lambda picture: picture, convention=None),
        artifact=SimpleNamespace(path=Path("x.pte")),
    )


NOBODY = Chosen({name: [] for name in APPS}, "")


def test_tokens_that_are_not_finite_are_an_error_of_the_size() -> None:
    """And a call that did not return is one, too."""

    def run(bundle: Bundle, **_: Any) -> Result:
        outputs = {call: np.zeros((1, 4, 4), np.float32) for call in range(2, len(bundle.calls))}
        return Result("ok", "", outputs | {0: np.full((1, 4, 4), np.nan, np.float32)}, errors={1: "0x12"})

    first, second, *others = try_sizes(_opened(run), NOBODY)
    assert (first.error, second.error) == ("image tokens that are not finite", "0x12")
    assert {one.error for one in others} == {""}


def test_a_slow_encoder_is_asked_for_few_sizes() -> None:
    """Those of named apps, and three of the gate's own."""
    asked: list[int] = []

    def run(bundle: Bundle, **_: Any) -> Result:
        asked.append(len(bundle.calls))
        return Result("ok", "")

    try_sizes(_opened(run, isa="elsewhere"), NOBODY)
    try_sizes(_opened(run, isa="elsewhere", apps=("cpp",)), NOBODY)
    try_sizes(_opened(run), NOBODY)
    assert asked == sorted(set(asked))
    assert asked[0] == 3 == len(prepared_sizes(_opened(run, isa="elsewhere")))


def _report(eyes: EyesEvidence) -> dict[str, Any]:
    figure = figures(
        SimpleNamespace(cases=(), user_case=None, layers=UNASKED, eyes=eyes, runtime=SimpleNamespace(cache=UNASKED))
    )  # type: ignore[arg-type]
    return {"figures": figure}


UNASKED = Missing("nobody asked", "unasked")


def test_the_table_of_the_report_says_what_is_lost_and_which_sizes() -> None:
    """A row for each app: answers, their interval, image tokens, sizes."""
    (row,) = eyes_rows(_report(_eyes(LOST, KEPT, Seen(ODD, tokens_db=9.0, same=True))))
    assert row[:2] == ("C++ example (cpp)", "2 of 3, 1 not fed")
    assert row[3:] == ("9", "1 of 2: 336 x 189")


def test_the_table_does_not_speak_of_what_nobody_looked_at() -> None:
    """No picture, no size."""
    (row,) = eyes_rows(_report(_eyes(tried=())))
    assert row[1:] == ("not looked at: name it with --app", "", "", "")
    assert eyes_rows({"figures": {}}) == []


def test_the_same_pixels_have_no_decibels() -> None:
    """An app that does as the gate does."""
    (row,) = eyes_rows(_report(_eyes(Seen(SQUARE, identical=True, same=True))))
    assert row[3] == "the same pixels"


def test_an_app_goes_into_the_command_to_run_next() -> None:
    """Without it the failure would not come back."""
    blame = {"check": "pixels.sizes"}
    data = {"blame": blame, "artifact": {"path": "x.pte"}, "request": {"apps": ["cpp", "ios"]}}
    assert "--app cpp,ios" in next_command(data)


def test_the_page_of_the_scenes_is_that_of_its_data() -> None:
    """docs/app-pixels.json, written by tests.bench.eyes."""
    data = json.loads((bench.DOCS / "app-pixels.json").read_text())
    assert bench.table(data) in (bench.DOCS / "app-pixels.md").read_text()
    assert all(figures["asked"] > 200 for figures in data["sets"].values())
