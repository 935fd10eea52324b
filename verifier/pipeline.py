"""The only orchestrator: open, gather evidence, judge. Stages know nothing of each other."""

from __future__ import annotations

import os
import resource
import time
from contextlib import closing
from dataclasses import replace

from verifier.checks.bands import ties_leave_a_difference
from verifier.checks.greedy import beyond_noise, looks_needed
from verifier.checks.registry import CHECKS
from verifier.core.archive import require_free_folder
from verifier.core.progress import Progress, hushed
from verifier.core.system import machine, peak_bytes_of
from verifier.core.versions import require_names
from verifier.export.manifest import cpu_kind, package_versions
from verifier.gather.opening import Opened, Request, open_request
from verifier.gather.schedule import gather, parts_needed
from verifier.gather.second_look import QuantizedRung
from verifier.measures.evidence import Case, Evidence, Part
from verifier.record.judging import Asked, Cost, Gathered, Machines, Run, judge, keep
from verifier.runner.fork_server import peak_rss_bytes


def verify(request: Request, progress: Progress | None = None) -> Run:
    """Verify one file. Raises `VerifierError` when it cannot be verified at all."""
    progress = progress or Progress(quiet=True)
    begun = time.perf_counter()
    if request.keep_evidence is not None:
        require_free_folder(request.keep_evidence)
    with hushed() as stream:
        progress.stream = stream
        with progress.stage("open"):
            require_names()
            opened = open_request(request, progress.transferred)
        with closing(opened.runner):
            evidence, quantized = gather(opened, progress)
            with progress.stage("second look"):
                evidence = second_look(evidence, quantized, opened)
        gathered = _gathered(opened, evidence, _cost(progress, begun))
        if request.keep_evidence is not None:
            with progress.stage("evidence saved"):
                keep(gathered, request.keep_evidence)
        with progress.stage("checks"):
            run = judge(gathered)
    return replace(run, gathered=replace(gathered, cost=_cost(progress, begun)))


def second_look(evidence: Evidence, quantized: QuantizedRung, opened: Opened) -> Evidence:
    """The evidence with what the price of rounding is, and what the quantized rung says of wrong tokens, where a check asks for it."""
    if ties_leave_a_difference(CHECKS, evidence):
        evidence = replace(evidence, rounding_db=quantized.rounding_db())
    if Part.QUANTIZED_TOKENS not in parts_needed(opened):
        return evidence

    def looked_at(case: Case, most: int | None) -> Case:
        return replace(case, quantized=quantized.tokens(case, beyond_noise(evidence, case)[:most]))

    own = evidence.user_case
    cases = tuple(looked_at(case, looks_needed(evidence)) for case in evidence.cases)
    return replace(evidence, cases=cases, user_case=None if own is None else looked_at(own, None))


def _cost(progress: Progress, begun: float) -> Cost:
    own = (peak_bytes_of(resource.getrusage(who)) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    usage = max(*own, peak_rss_bytes())
    stage_s = {name: round(seconds, 1) for name, seconds in progress.stage_s.items()}
    return Cost(time.perf_counter() - begun, stage_s, usage)


def _gathered(opened: Opened, evidence: Evidence, cost: Cost) -> Gathered:
    request, runner = opened.request, opened.runner
    asked = Asked(
        request.model,
        request.target,
        request.tokenizer,
        request.checks,
        request.images,
        request.allow_partial,
        opened.having,
    )
    machines = Machines(runner.name, runner.isa, machine(), cpu_kind(), os.cpu_count() or 1, package_versions())
    return Gathered(evidence, asked, opened.checkpoint.name, opened.checkpoint.sha256, machines, cost)
