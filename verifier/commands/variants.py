"""Which files bands may come from: exports that are equally clean, and differ in what their calibration images decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from verifier.artifact.program import Artifact
from verifier.backends.backend import Graph
from verifier.backends.calls import delegate_of
from verifier.backends.quantization import PerTensor
from verifier.checks.check import run_checks
from verifier.checks.registry import select
from verifier.core.errors import GoldenError, UsageError
from verifier.core.limits import limit
from verifier.core.types import Missing
from verifier.measures.evidence import Evidence

SAME_SCALE, MOVED = limit("calibrate.same_scale"), limit("calibrate.moved")
CLEAN = (
    *("weights.tensors", "layers.constants", "layers.graph", "layers.vision"),
    *("embedding.*", "vision.*", "logits.*"),
)
"""What a file must pass to be called clean, without bands: the bytes and blocks of its own recipe, and the budgets of quantization."""
Range = tuple[str, int, int]
"""Where an int8 range stands: method, instruction, value."""
EXPORT_AGAIN = (
    "export the checkpoint again with other calibration images (ours: --calibration FOLDER). An exporter with one picture built in has no variants, "
    "and no bands are needed: without them python -m verifier.test_pte judges by budgets (--budget)"
)


def int8_ranges(artifact: Artifact) -> dict[Range, PerTensor]:
    """Scale and zero point of every activation that the file quantizes with numbers of its own: what calibration images decide."""
    found: dict[Range, PerTensor] = {}
    for name, plan in artifact.plans.items():
        for step in plan.instructions:
            graph = delegate_of(artifact, plan, step) if step.kind == "delegate" else None
            for value in graph.values.values() if isinstance(graph, Graph) else ():
                if isinstance(value.quantization, PerTensor) and value.constant is None:
                    found[name, step.index, value.id] = value.quantization
    return found


def require_variants(files: Sequence[Artifact]) -> None:
    """Raise `UsageError`, naming two files and why, unless every file has int8 ranges of its own: a spread of copies is zero and says nothing."""
    for one, two in combinations(files, 2):
        if one.sha256 == two.sha256:
            raise UsageError(
                "two of the files hold the same bytes: their spread is zero, which says nothing",
                got=f"{one.path} and {two.path}, SHA-256 {one.sha256[:16]}",
                expected="exports that differ in their calibration images",
                fix=EXPORT_AGAIN,
            )
    ranges = [int8_ranges(file) for file in files]
    if not ranges[0]:
        raise UsageError(
            "the file has no variants: no number of it comes from calibration images",
            got=f"no activation of {files[0].path} has an int8 range of its own",
            fix="calibrate nothing: weights and recipe determine what it computes. python -m verifier.test_pte judges it by budgets (--budget)",
        )
    for (one, first), (two, second) in combinations(zip(files, ranges, strict=True), 2):
        if first.keys() != second.keys():
            continue  # another graph: the recipe or the census says so
        moved = sum(not _same(first[place], second[place]) for place in first)
        if not MOVED.admits(moved / len(first)):
            raise UsageError(
                "two of the files are all but the same: their spread is next to zero, which says nothing",
                got=f"{one.path} and {two.path}: {moved} of {len(first)} int8 ranges differ by more than {SAME_SCALE.value:.1%}",
                expected=f"at least {MOVED.value:.0%} of them, as exports with other calibration images have",
                fix=EXPORT_AGAIN,
            )


def _same(one: PerTensor, two: PerTensor) -> bool:
    apart = abs(one.scale - two.scale) / max(abs(one.scale), abs(two.scale), 1e-30)
    return one.zero_point == two.zero_point and SAME_SCALE.admits(apart)


def require_clean(evidence: Evidence, having: frozenset[str]) -> None:
    """Raise `GoldenError`, naming file and check, if a file fails what needs no band: its constants and blocks are not those of its own recipe, or what
    it computes is further from fp32 than the budgets allow. A band that is made of it would admit the fault."""
    bare = replace(evidence, tolerances=Missing("bands are being made", "verifier"))
    results = run_checks(select(CLEAN, having), bare, foreign=False, unsound="")
    broken = [result for result in results if result.verdict == "fail"]
    if broken:
        first = broken[0]
        raise GoldenError(
            "the file is not clean: bands made of it would admit what is wrong with it",
            got=f"{first.id} [{first.case}]: {first.message}"
            + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""),
            expected="a file that passes without bands",
            where=evidence.program.path,
            fix="python -m verifier.test_pte names what is wrong; calibrate with clean exports",
        )
