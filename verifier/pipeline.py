"""The only orchestrator: open, gather evidence, check, judge. Stages know nothing of each other."""

from __future__ import annotations

import os
import platform
import resource
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from verifier.artifact.program import Artifact
from verifier.checkpoint import Checkpoint
from verifier.checks.check import run_checks
from verifier.checks.device import unsound
from verifier.evidence import Evidence
from verifier.export.manifest import cpu_kind, package_versions
from verifier.facts import facts
from verifier.figures import figures
from verifier.gather import gather
from verifier.opening import Opened, Request, open_request, planned_cases
from verifier.progress import Progress, hushed
from verifier.types import CheckResult, Missing, Recipe
from verifier.verdict import Judgement, judge_run


@dataclass(frozen=True)
class Run:
    """A finished verification. `partial` if something was left out on request: a pass then speaks for what was checked. `facts` is what
    another run is compared by, `figures` what a reader looks at, `stage_s` where the time went, `environment` the machine and packages that judged."""

    request: Request
    artifact: Artifact
    checkpoint: Checkpoint
    recipe: Recipe
    target: dict[str, Any]
    results: list[CheckResult]
    judgement: Judgement
    wall_s: float
    peak_rss_bytes: int
    partial: bool
    facts: dict[str, Any]
    figures: dict[str, Any]
    stage_s: dict[str, float]
    environment: dict[str, Any]


def _target(opened: Opened, evidence: Evidence) -> dict[str, Any]:
    """The machine that ran the program, as its runner says; nothing but its name where nothing ran."""
    made: dict[str, Any] = {"name": opened.runner.name, "isa": opened.runner.isa}
    nothing: dict[str, Any] = {"cpu_features": [], "instructions": {}, "in_use": [], "conditions": {}, "versions": {}}
    ran = evidence.runtime.conversations
    if isinstance(ran, Missing):
        return made | nothing
    return made | {
        "cpu_features": list(ran.cpu_features),
        "instructions": {name: said or "right" for name, said in ran.instructions.items()},
        "in_use": list(ran.in_use),
        "conditions": ran.conditions,
        "versions": ran.versions,
    }


def judge(opened: Opened, evidence: Evidence) -> list[CheckResult]:
    """All results of the chosen checks, in the order of the registry."""
    ran = evidence.runtime.conversations
    wrong = "" if isinstance(ran, Missing) else unsound(ran.instructions)
    return run_checks(opened.checks, evidence, foreign=opened.runner.isa != platform.machine(), unsound=wrong)


def verify(request: Request, progress: Progress | None = None) -> Run:
    """Verify one file. Raises `VerifierError` when it cannot be verified at all."""
    progress = progress or Progress(quiet=True)
    begun = time.perf_counter()
    with hushed() as stream:
        progress.stream = stream
        with progress.stage("open"):
            opened = open_request(request, progress.transferred)
        with closing(opened.runner):
            evidence = gather(opened, progress)
        with progress.stage("checks"):
            results = judge(opened, evidence)
            known, drawn = facts(evidence), figures(evidence)
    judgement = judge_run(
        results,
        expected=len(planned_cases(opened)),
        allow_partial=request.allow_partial,
        optional=frozenset(check.id for check in opened.checks if check.optional),
    )
    usage = max(resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Run(
        request,
        opened.artifact,
        opened.checkpoint,
        opened.recipe,
        _target(opened, evidence),
        results,
        judgement,
        time.perf_counter() - begun,
        usage,
        partial=bool(request.checks or request.images) or request.allow_partial,
        facts=known,
        figures=drawn,
        stage_s={name: round(seconds, 1) for name, seconds in progress.stage_s.items()},
        environment={"cpu": cpu_kind(), "cores": os.cpu_count(), "versions": package_versions()},
    )
