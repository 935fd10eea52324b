"""From gathered evidence to a verdict. Nothing here loads a model, runs a program or reads the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from verifier.checks.check import run_checks
from verifier.checks.device import unsound
from verifier.checks.registry import select
from verifier.core.archive import load_archive, save_archive
from verifier.core.records import JsonObject
from verifier.core.types import CheckResult, Missing
from verifier.core.versions import installed
from verifier.measures.evidence import Evidence
from verifier.record.facts import facts
from verifier.record.figures import figures
from verifier.record.verdict import Judgement, judge_run

SCHEMA = f"verifier.evidence/{installed('llava-verifier') or 'not-installed'}"
"""Evidence belongs to the version that wrote it: a field may mean something else in the next one."""


@dataclass(frozen=True)
class Asked:
    """What was asked for. `checks` and `images` are globs, all where there are none; `having` is what some checks are made for alone
    (`verifier.checks.check`)."""

    model: str | None
    target: str
    tokenizer: Path | None
    checks: tuple[str, ...]
    images: tuple[str, ...]
    allow_partial: bool
    having: frozenset[str]


@dataclass(frozen=True)
class Machines:
    """Where the program ran, and where it was judged. `isa` as `uname -m` says it."""

    target: str
    target_isa: str
    isa: str
    cpu: dict[str, str]
    cores: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Cost:
    """Seconds in all and by stage; the largest resident memory of this process and of its children, in bytes."""

    wall_s: float
    stage_s: dict[str, float]
    peak_rss_bytes: int


@dataclass(frozen=True)
class Gathered:
    """Everything that a verdict rests on, as data."""

    evidence: Evidence
    asked: Asked
    checkpoint: str
    checkpoint_sha256: str
    machines: Machines
    cost: Cost

    def asking(self, checks: tuple[str, ...], *, allow_partial: bool) -> Gathered:
        """The same evidence, asked for other checks."""
        checks = checks or self.asked.checks
        allow = allow_partial or self.asked.allow_partial
        return replace(self, asked=replace(self.asked, checks=checks, allow_partial=allow))

    def pricing(self, prices: Mapping[str, float]) -> Gathered:
        """The same evidence with other budgets of quantization, by metric."""
        return replace(self, evidence=replace(self.evidence, prices={**self.evidence.prices, **prices}))


@dataclass(frozen=True)
class Run:
    """A judged verification. `partial` if something was left out on request: a pass then speaks for what was checked. `facts` is what another run
    is compared by, `figures` what a reader looks at."""

    gathered: Gathered
    results: list[CheckResult]
    judgement: Judgement
    partial: bool
    facts: JsonObject
    figures: JsonObject

    @property
    def target(self) -> JsonObject:
        """The machine that ran the program, as its runner says; nothing but its name where nothing ran."""
        machines, ran = self.gathered.machines, self.gathered.evidence.runtime.conversations
        known: JsonObject = {"name": machines.target, "isa": machines.target_isa}
        if isinstance(ran, Missing):
            return known | {"cpu_features": [], "instructions": {}, "in_use": [], "conditions": {}, "versions": {}}
        return known | {
            "cpu_features": list(ran.cpu_features),
            "instructions": {name: wrong or "right" for name, wrong in ran.instructions.items()},
            "in_use": list(ran.in_use),
            "conditions": ran.conditions,
            "versions": ran.versions,
        }


def judge(gathered: Gathered) -> Run:
    """Judge the evidence with the checks that were asked for, in the order of the registry."""
    evidence, asked, machines = gathered.evidence, gathered.asked, gathered.machines
    checks, ran = select(asked.checks, asked.having), evidence.runtime.conversations
    wrong = "" if isinstance(ran, Missing) else unsound(ran.instructions)
    results = run_checks(checks, evidence, foreign=machines.target_isa != machines.isa, unsound=wrong)
    judgement = judge_run(
        results,
        expected=sum(len(check.cases(evidence.subjects)) for check in checks),
        allow_partial=asked.allow_partial,
        optional=frozenset(check.id for check in checks if check.optional),
    )
    partial = bool(asked.checks or asked.images) or asked.allow_partial
    return Run(gathered, results, judgement, partial, facts(evidence), figures(evidence))


def keep(gathered: Gathered, folder: Path) -> None:
    """Save evidence in a folder. Raises `VerifierError`."""
    save_archive(gathered, folder, schema=SCHEMA)


def kept(folder: Path) -> Gathered:
    """Evidence that was saved. Raises `ArchiveError`."""
    return load_archive(folder, Gathered, schema=SCHEMA)
