"""The comparison of two trees' reports (`tests.bench.reports`) tells every change of a value, of a case and of the order."""

from __future__ import annotations

import math
from typing import Any

from tests.bench.reports import Judged, differences, repeated


def _result(case: str, **fields: Any) -> dict[str, Any]:
    plain = {"id": "logits.sqnr", "step": "kernel", "verdict": "pass", "measured": {"sqnr_db": 30.5}, "allowed": {}}
    return plain | {"case": case, "exception": None} | fields


def _judged(*results: dict[str, Any], status: int = 0) -> Judged:
    return Judged(status, "verified", results)


BASE = _judged(_result("a"), _result("b"))


def test_equal() -> None:
    """The same results, keys in another order, are equal."""
    turned = dict(reversed(_result("a").items()))
    assert differences(BASE, _judged(turned, _result("b"))) == []


def test_changed_value() -> None:
    """The last bit of a measured value is a difference, and so is a float where an integer was."""
    moved = math.nextafter(30.5, 31)
    assert differences(BASE, _judged(_result("a", measured={"sqnr_db": moved}), _result("b"))) == [
        f'logits.sqnr a: measured {{"sqnr_db": 30.5}} -> {{"sqnr_db": {moved!r}}}'
    ]
    one, as_float = (_judged(_result("a", measured={"rows": value})) for value in (1, 1.0))
    assert differences(one, as_float) == ['logits.sqnr a: measured {"rows": 1} -> {"rows": 1.0}']


def test_missing_case() -> None:
    """A case that only one side has is named with the side."""
    assert differences(BASE, _judged(_result("a"))) == ["logits.sqnr b 0: only in the base"]
    assert differences(_judged(_result("a")), BASE) == ["logits.sqnr b 0: only here"]


def test_changed_order() -> None:
    """The first place where the order of the shared results differs is named."""
    assert differences(BASE, _judged(_result("b"), _result("a"))) == [
        "order of results: the shared result 0 is ('logits.sqnr', 'a') -> ('logits.sqnr', 'b')"
    ]


def test_repeated_case() -> None:
    """Two results of one id and case are compared one by one."""
    twice = _judged(_result("a"), _result("a"))
    assert differences(twice, _judged(_result("a"), _result("a", verdict="fail"))) == [
        'logits.sqnr a: verdict "pass" -> "fail"'
    ]


def test_nan() -> None:
    """NaN is equal to NaN and to nothing else."""
    nan = _judged(_result("a", measured=math.nan))
    assert differences(nan, _judged(_result("a", measured=float("nan")))) == []
    assert differences(nan, _judged(_result("a", measured=0.0))) == ["logits.sqnr a: measured NaN -> 0.0"]


def test_refusal() -> None:
    """A report where the base refused the file is a difference, as is another exit status."""
    assert differences(Judged(2), _judged(_result("a"))) == [
        "exit status: 2 -> 0",
        'verdict: null -> "verified"',
        "logits.sqnr a 0: only here",
    ]


def test_what_a_second_run_does_not_show() -> None:
    """A place that differs in both runs counts, whatever the values; one that differs in a single run does not."""
    first = ["logits.sqnr a: measured 1 -> 2", "logits.sqnr b: measured 1 -> 2", "x.y c 0: only here"]
    assert repeated(first, ["logits.sqnr a: measured 1 -> 3", "x.y c 0: only here"]) == [first[0], first[2]]


def test_what_varies_between_runs_of_one_tree() -> None:
    """Decibels of `layers.graph` may move by 10 dB; further, or with another key or verdict, they are a difference."""

    def graph(value: float, **fields: Any) -> Judged:
        return _judged(_result("a", id="layers.graph", measured={"sqnr_db": value}, **fields))

    assert differences(graph(131.4), graph(123.0)) == []
    assert len(differences(graph(131.4), graph(119.0))) == 1
    assert len(differences(graph(131.4), graph(math.nan))) == 1
    assert len(differences(graph(131.4), graph(131.4, verdict="fail"))) == 1
    assert len(differences(BASE, _judged(_result("a", measured={"sqnr_db": 30.6}), _result("b")))) == 1
