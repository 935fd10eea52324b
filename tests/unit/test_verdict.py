"""A verdict is never a pass by omission."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verifier.core.types import CheckResult, Verdict
from verifier.record.verdict import judge_run, share_of_tolerance


def _result(verdict: Verdict, check: str = "logits.channels") -> CheckResult:
    return CheckResult(check, "quantization", "program", verdict, "said so")


@pytest.mark.parametrize(
    ("verdicts", "expected", "partial", "status"),
    [
        (["pass", "pass"], 2, False, 0),
        (["pass", "fail"], 2, False, 1),
        (["error", "fail"], 2, False, 1),
        (["pass", "error"], 2, False, 2),
        (["pass", "skipped"], 2, False, 2),
        (["pass", "error"], 2, True, 0),
        (["pass", "fail"], 2, True, 1),
        (["error"], 1, True, 2),
        ([], 0, False, 2),
        (["pass"], 2, False, 2),
        (["skipped"], 1, True, 2),
    ],
)
def test_exit_status_by_results(verdicts: list[Verdict], expected: int, partial: bool, status: int) -> None:
    """0 verified, 1 failed, 2 not verified; holes are errors unless partial is allowed; nothing passed is never 0."""
    judgement = judge_run([_result(v) for v in verdicts], expected=expected, allow_partial=partial)
    assert judgement.exit_status == status


def test_optional_check_may_be_skipped() -> None:
    """A file without manifest can be verified."""
    results = [_result("skipped", "structure.manifest"), _result("pass")]
    assert judge_run(results, expected=2, optional=frozenset({"structure.manifest"})).exit_status == 0


def test_blame_is_the_first_failure() -> None:
    """Results come in the order of the registry; the first failing one is nearest to the cause."""
    results = [_result("pass"), _result("fail", "vision.embedding"), _result("fail", "greedy.golden")]
    blame = judge_run(results, expected=3).blame
    assert blame is not None
    assert blame.id == "vision.embedding"


@pytest.mark.parametrize(
    ("check", "measured", "allowed", "share"),
    [
        ("mapping.activations", {"sqnr_db": 125.0}, {"sqnr_db": 100.0}, 0.8),
        ("embedding.tokens", {"worst_steps": 0.5}, {"worst_steps": 0.51}, 0.5 / 0.51),
        ("budget.memory", {"planned_bytes": 10}, {"planned_bytes": 20}, 0.5),
        ("structure.memory", {"planned_bytes": 20}, {"planned_bytes": 10}, None),  # a lower bound
        ("splice.prompts", {"tokens": 768}, {"tokens": 768}, None),  # a length that is meant to be reached
        ("kvcache.history", {"sqnr_db": 400.0}, {"sqnr_db": 400.0}, None),  # equality
        ("logits.distribution", {"logits.top1_agreement": 0.9}, {"logits.top1_agreement": 0.8}, None),
        ("weights.tensors", {"wrong": 1}, {"wrong": 2}, None),
        ("layers.graph", {"sqnr_db": float("nan")}, {"sqnr_db": 40.0}, None),
        ("layers.graph", {"sqnr_db": None}, {"sqnr_db": None}, None),
    ],
)
def test_share_of_tolerance(
    check: str, measured: dict[str, float], allowed: dict[str, float], share: float | None
) -> None:
    """How close to its limit a result came: upper bounds and dB; what is met or not, and lower bounds, have no share."""
    found = share_of_tolerance(replace(_result("pass", check), measured=measured, allowed=allowed))
    assert (found and found[0]) == (share and pytest.approx(share))
