"""What a check is, and what its runner makes of findings, of absence, and of a machine that computes wrongly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from verifier.checks.check import Check, Finding, check, failed, fixed_cases, need, passed, run_checks, skipped
from verifier.checks.registry import CHECKS
from verifier.core.limits import LIMITS
from verifier.core.scales import SCALES
from verifier.core.types import Culprit, Missing, Where
from verifier.measures.evidence import Part, with_foundations

EVIDENCE: Any = SimpleNamespace(subjects=None)
ONE_TWO = fixed_cases("one", "two")


@need()
def something(_evidence: object) -> str:
    """Always there."""
    return "something"


def _made(judge: Any, *, computed: bool = True, id: str = "layers.kernel", **fields: Any) -> Check:
    needs = need(computed=computed)(lambda _evidence: "something")
    made: Check = check(id, step="kernel", needs=needs, cases=ONE_TWO, **fields)(judge)
    return made


def test_every_promised_case_has_a_result() -> None:
    """By the one runner, with what was taken from the evidence once."""
    results = _made(lambda given, case: passed(f"{given} of {case}", where=Where("text_decoder"))).results(EVIDENCE)
    assert [(r.id, r.step, r.case, r.message) for r in results] == [
        ("layers.kernel", "kernel", "one", "something of one"),
        ("layers.kernel", "kernel", "two", "something of two"),
    ]
    assert results[0].where == Where("text_decoder")


@pytest.mark.parametrize(("culprit", "verdict"), [("program", "fail"), ("verifier", "error"), ("unasked", "error")])
def test_missing_is_never_a_pass(culprit: Culprit, verdict: str) -> None:
    """For all cases: the program's fault is a failure, everything else an error."""

    @need()
    def absent(_evidence: object) -> Missing:
        return Missing("nothing was run", culprit, accuses="calls")

    made = check("a.b", step="kernel", needs=absent, cases=ONE_TWO)(lambda _given, _case: passed("unreachable"))
    results = made.results(EVIDENCE)
    assert [(r.verdict, r.message, r.accuses) for r in results] == [(verdict, "nothing was run", "calls")] * 2


def test_only_an_optional_check_is_skipped() -> None:
    """Of any other it is an error: a hole."""
    verdicts = [
        {r.verdict for r in _made(lambda _given, _case: skipped("there is none"), optional=optional).results(EVIDENCE)}
        for optional in (True, False)
    ]
    assert verdicts == [{"skipped"}, {"error"}]


def test_results_come_in_the_order_in_which_they_went_wrong() -> None:
    """The first to go wrong is blamed; what passed keeps its place behind."""
    since = {"one": (3, 1), "two": (0, 9)}
    results = _made(lambda _given, case: failed("wrong", since=since[case])).results(EVIDENCE)
    assert [r.case for r in results] == ["two", "one"]
    mixed = _made(lambda _given, case: passed("right") if case == "one" else failed("wrong", since=(0, 0)))
    assert [r.case for r in mixed.results(EVIDENCE)] == ["two", "one"]


def test_failures_on_an_unsound_machine_are_not_the_files() -> None:
    """What looks at the program's answers becomes an error; what looks at the file alone keeps its verdict."""

    def wrong(_given: str, _case: str) -> Finding:
        return failed("49 steps")

    both = (_made(wrong), _made(wrong, computed=False, id="weights.tensors"))
    judged = run_checks(both, EVIDENCE, foreign=True, unsound="SMOPA (wrong)")
    assert [(r.id, r.verdict) for r in judged[::2]] == [("layers.kernel", "error"), ("weights.tensors", "fail")]
    assert judged[0].message == "not to be trusted on this machine: 49 steps"
    assert {r.step for r in judged} == {"device"}
    sound = run_checks(both, EVIDENCE, foreign=False, unsound="")
    assert {(r.verdict, r.step) for r in sound} == {("fail", "kernel")}


def test_parts_come_with_what_they_rest_on() -> None:
    """Directly or by way of others; nothing for nothing."""
    assert with_foundations([]) == frozenset()
    assert with_foundations([Part.CHUNKS]) == {Part.CHUNKS, Part.CACHE, Part.RUNTIME}
    assert with_foundations([Part.PUBLISHED]) >= {Part.CONVERSATIONS, Part.PROMPTS, Part.RUNTIME}


@pytest.mark.parametrize("one", CHECKS, ids=[one.id for one in CHECKS])
def test_every_check_says_what_must_hold_and_by_which_limits(one: Check) -> None:
    """Its docstring is its entry in docs/checks.md; its limits are rows of the table or calibrated metrics."""
    assert one.judge.__doc__
    assert set(one.limit) <= LIMITS.keys() | SCALES.keys()
    assert one.id.count(".") == 1


def test_checks_of_what_the_program_computed_are_these_families() -> None:
    """The rest looks at the file, at references, or at how the program is asked."""
    computed = {one.id.partition(".")[0] for one in CHECKS if one.needs.computed}
    assert computed == {
        *("layers", "device", "kvcache", "threads", "embedding", "vision", "logits", "greedy", "budget", "pixels")
    }
    alone = {one.id for one in CHECKS if not one.needs.computed and one.id.partition(".")[0] in computed}
    assert alone == {"budget.file", "budget.memory", "pixels.kept"}
