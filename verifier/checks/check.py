"""What a check is, and the one runner that makes it for every case that it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from verifier.core.types import CheckResult, Missing, Step, Verdict, Where
from verifier.measures.evidence import Evidence, Part, Subjects

T = TypeVar("T")
Cases = Callable[[Subjects], tuple[str, ...]]
"""From the subjects to the cases of a check, so that tests can be listed before anything runs."""
IN_ORDER = (1 << 30, 0)
PRICE = "price"
"""Accused where quantization costs more than its budget, and the file is what the recipe made."""
IMAGE, PUBLISHED_ANSWER, ALL_IMAGES = "image", "published answer", "all images"
DEVICE, ELSEWHERE = "device", "elsewhere"
OFFICIAL = "ExecuTorch's own runner"
"""What a request may have, and some checks are made for alone: an image of the user, an answer to it that was published for this checkpoint, a
target of another architecture than this machine's, all golden images rather than chosen ones, a target that runs ExecuTorch's own runner. A figure that has a budget is one, too."""


class Fields(TypedDict, total=False):
    """What a finding may say besides its message; see `CheckResult`. `since` is the place, by call and instruction, where a computation went
    wrong: among the cases of a check, blame is sought in this order first."""

    measured: Mapping[str, object]
    allowed: Mapping[str, object]
    where: Where | None
    exception: str
    accuses: str
    since: tuple[int, int]


NOTHING: Fields = {}


@dataclass(frozen=True)
class Finding:
    """What a check says of one case; the runner adds which check and which case."""

    verdict: Verdict
    message: str
    fields: Fields

    def but(self, **fields: Unpack[Fields]) -> Finding:
        """The same with other fields."""
        return replace(self, fields=self.fields | fields)

    @property
    def where(self) -> Where | None:
        """The place, if one is known."""
        return self.fields.get("where")


def passed(message: str, fields: Fields = NOTHING, **more: Unpack[Fields]) -> Finding:
    """What was promised holds."""
    return Finding("pass", message, fields | more)


def failed(message: str, fields: Fields = NOTHING, **more: Unpack[Fields]) -> Finding:
    """The artifact is at fault."""
    return Finding("fail", message, fields | more)


def unverified(message: str, fields: Fields = NOTHING, **more: Unpack[Fields]) -> Finding:
    """Not verified: something needed is missing."""
    return Finding("error", message, fields | more)


def skipped(message: str, fields: Fields = NOTHING, **more: Unpack[Fields]) -> Finding:
    """What an optional check looks at does not exist. Of any other check it is an error."""
    return Finding("skipped", message, fields | more)


@dataclass(frozen=True)
class Need(Generic[T]):
    """What a check looks at: `take` finds it in the evidence, or says why it is missing, once for all cases.

    `parts` must have been gathered for it. `computed` if it holds what the program computed on its target: on a machine that computes
    wrongly, a failure then proves nothing. `golden` if it holds golden conversations.
    """

    take: Callable[[Evidence], T | Missing]
    parts: frozenset[Part] = frozenset()
    computed: bool = False
    golden: bool = False


def need(
    *parts: Part, computed: bool = False, golden: bool = False
) -> Callable[[Callable[[Evidence], T | Missing]], Need[T]]:
    """Make a need of the function that takes it from the evidence."""
    return lambda take: Need(take, frozenset(parts), computed, golden)


@dataclass(frozen=True)
class Check:
    """A check: its place on the ladder, what it needs, its cases, and how it judges one of them.

    `limit` names the rows of the table of limits, or the calibrated metrics, that decide; none if something is met or not. It is made only
    for requests `having` all that it names. `optional` if what it looks at need not exist. `overlap`: why the bench has no fault that this check
    alone sees (docs/faults.md). `explained_by` is the check whose failure explains a price over its budget here.
    """

    id: str
    step: Step
    needs: Need[Any]
    cases: Cases
    judge: Callable[[Any, str], Finding]
    limit: tuple[str, ...] = ()
    having: frozenset[str] = frozenset()
    optional: bool = False
    overlap: str = ""
    explained_by: str = ""

    @property
    def golden(self) -> bool:
        """Whether it cannot be made for a checkpoint without golden data."""
        return self.needs.golden

    def results(self, evidence: Evidence) -> list[CheckResult]:
        """One result for every promised case: the runner of all checks."""
        cases = self.cases(evidence.subjects)
        given = self.needs.take(evidence) if cases else None
        if isinstance(given, Missing):
            finding = _absent(given)
            return [self._result(case, finding) for case in cases]
        findings = [(case, self.judge(given, case)) for case in cases]
        findings.sort(key=lambda pair: pair[1].fields.get("since", IN_ORDER))
        return [self._result(case, finding) for case, finding in findings]

    def _result(self, case: str, finding: Finding) -> CheckResult:
        verdict = "error" if finding.verdict == "skipped" and not self.optional else finding.verdict
        said = finding.fields
        return CheckResult(
            self.id,
            self.step,
            case,
            verdict,
            finding.message,
            dict(said.get("measured", {})),
            dict(said.get("allowed", {})),
            said.get("where"),
            said.get("exception", ""),
            said.get("accuses", ""),
        )


def _absent(missing: Missing) -> Finding:
    give = failed if missing.culprit == "program" else unverified
    return give(missing.reason, where=missing.where, accuses=missing.accuses)


def check(
    id: str,
    *,
    step: Step,
    needs: Need[T],
    cases: Cases,
    limit: str | tuple[str, ...] = (),
    having: Iterable[str] = (),
    optional: bool = False,
    overlap: str = "",
    explained_by: str = "",
) -> Callable[[Callable[[T, str], Finding]], Check]:
    """Make a check of the function that judges one case. Its docstring is its entry in docs/checks.md."""
    limits = (limit,) if isinstance(limit, str) else limit
    return lambda judge: Check(
        id, step, needs, cases, judge, limits, frozenset(having), optional, overlap, explained_by
    )


def run_checks(checks: Iterable[Check], evidence: Evidence, *, foreign: bool, unsound: str) -> list[CheckResult]:
    """All results of all checks, in their order.

    On a machine of another kind than this one (`foreign`) the kernels that ran are the device's, and so is the step. If that machine
    computes wrongly (`unsound` says how), a failure of what it computed is not the file's: it becomes an error. A price over its budget is skipped
    where the failure of another check among these explains it: one cause is named once.
    """
    chosen = tuple(checks)
    made = [
        _on_target(result, one, foreign=foreign, unsound=unsound) for one in chosen for result in one.results(evidence)
    ]
    broken = {result.id for result in made if result.verdict == "fail" and result.accuses != PRICE}
    causes = {one.id: one.explained_by for one in chosen if one.explained_by in broken}
    return [_explained(result, causes.get(result.id, "")) for result in made]


def _explained(result: CheckResult, cause: str) -> CheckResult:
    if not cause or result.verdict != "fail" or result.accuses != PRICE:
        return result
    return replace(
        result, verdict="skipped", accuses="", message=f"explained by {cause}, which failed: {result.message}"
    )


def _on_target(result: CheckResult, check: Check, *, foreign: bool, unsound: str) -> CheckResult:
    if unsound and result.verdict == "fail" and check.needs.computed:
        result = replace(result, verdict="error", message=f"not to be trusted on this machine: {result.message}")
    return replace(result, step="device") if foreign and result.step == "kernel" else result


def fixed_cases(*names: str) -> Cases:
    """Cases that do not depend on the model."""
    return lambda _subjects: names


one_case = fixed_cases("program")
"""A check of the whole file."""


def per_image(subjects: Subjects) -> tuple[str, ...]:
    """A check of every golden image."""
    return subjects.images


def per_parameter(subjects: Subjects) -> tuple[str, ...]:
    """A check of every parameter of the checkpoint that reaches the program."""
    return subjects.parameters


def per_block(subjects: Subjects) -> tuple[str, ...]:
    """A check of every block of the model."""
    return subjects.blocks
