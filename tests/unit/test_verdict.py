"""A verdict is never a pass by omission."""

from __future__ import annotations

import pytest

from verifier.types import CheckResult, Verdict
from verifier.verdict import judge_run


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
    assert judge_run(results, expected=2).exit_status == 0


def test_blame_is_the_first_failure() -> None:
    """Results come in the order of the registry; the first failing one is nearest to the cause."""
    results = [_result("pass"), _result("fail", "vision.embedding"), _result("fail", "greedy.golden")]
    blame = judge_run(results, expected=3).blame
    assert blame is not None
    assert blame.id == "vision.embedding"
