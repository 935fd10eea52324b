"""`structure.lifetimes`: the memory plan, read from the file."""

from __future__ import annotations

from verifier.artifact.program import METHODS
from verifier.audit.lifetimes import find_overlaps, lifetimes, outside_arena
from verifier.checks.common import Check, one_case
from verifier.evidence import Evidence
from verifier.types import CheckResult, Where


def plan(check: Check, evidence: Evidence) -> list[CheckResult]:
    """No two tensors that live at the same time share memory, and none ends outside its arena."""
    planned = 0
    for method in METHODS:
        found = evidence.artifact.plans[method]
        planned += len(lifetimes(found))
        outside = outside_arena(found)
        if outside:
            first = outside[0]
            where = Where(method=method, instruction=max(first.first, 0), index=(first.value,))
            message = f"{method}: EValue {first.value} ends at byte {first.end:,} of arena {first.arena}, which has {found.arenas_bytes}. Export again."
            return [check.failed("program", message, where=where)]
        overlaps = find_overlaps(found)
        if overlaps:
            one, other = overlaps[0].first, overlaps[0].second
            where = Where(method=method, instruction=max(one.first, other.first), index=(one.value, other.value))
            kind = "a cache" if one.permanent or other.permanent else "a tensor"
            message = (
                f"{method}: EValues {one.value} and {other.value} share bytes {max(one.begin, other.begin):,} to "
                f"{min(one.end, other.end):,} of arena {one.arena} while both live (instructions {one.first}..{one.last} and "
                f"{other.first}..{other.last}): {kind} will be overwritten. Check the memory planning pass."
            )
            return [
                check.failed(
                    "program", message, measured={"overlaps": len(overlaps)}, allowed={"overlaps": 0}, where=where
                )
            ]
    if not planned:
        return [check.error("program", "the program plans no memory: nothing was compared")]
    return [
        check.passed(
            "program",
            f"{planned} tensors, none overwritten while it lives",
            measured={"overlaps": 0},
            allowed={"overlaps": 0},
        )
    ]


CHECKS = (Check("structure.lifetimes", "lowering", one_case, plan),)
"""Source: issue ET#12182, where a cache's lifetime ended early."""
