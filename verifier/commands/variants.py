"""Which files bands may come from: exports that are equally clean, and differ in what their calibration images decide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from verifier.artifact.program import Artifact
from verifier.backends.backend import Graph
from verifier.backends.calls import delegate_of
from verifier.backends.quantization import PerTensor
from verifier.core.errors import UsageError
from verifier.core.limits import limit

SAME_SCALE, MOVED = limit("calibrate.same_scale"), limit("calibrate.moved")
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
