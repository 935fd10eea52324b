"""The memory plan: clean ones have no conflict, one moved tensor has."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import EMBEDDED_PTE
from verifier.artifact.plan import Plan, TensorValue
from verifier.artifact.program import Artifact, open_artifact
from verifier.audit.lifetimes import find_overlaps
from verifier.audit.lifetimes import lifetimes as tensor_lifetimes
from verifier.checks.structure import lifetimes
from verifier.core.types import CheckResult
from verifier.families.conventions import ROLES
from verifier.families.registry import open_checkpoint
from verifier.measures.program_facts import program_facts


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """The embedded program."""
    return open_artifact(EMBEDDED_PTE)


def _moved(plan: Plan, index: int, place: tuple[int, int]) -> Plan:
    value = plan.values[index]
    assert isinstance(value, TensorValue)
    values = list(plan.values)
    values[index] = replace(value, place=place)
    return replace(plan, values=tuple(values))


def _judged(artifact: Artifact, plan: Plan) -> CheckResult:
    changed = replace(artifact, plans=artifact.plans | {plan.name: plan})
    evidence: Any = SimpleNamespace(program=program_facts(changed), subjects=None)
    return lifetimes.results(evidence)[0]


def test_clean_plan_has_no_conflict(artifact: Artifact) -> None:
    """Every method of the embedded program."""
    assert all(find_overlaps(artifact.plans[method]) == [] for method in ROLES)
    assert _judged(artifact, artifact.plans["text_decoder"]).verdict == "pass"


def test_cache_is_what_the_geometry_says(artifact: Artifact) -> None:
    """2 x layers x 768 x kv heads x head dim x 4 bytes."""
    permanent = [one for one in tensor_lifetimes(artifact.plans["text_decoder"]) if one.permanent]
    cache_bytes = open_checkpoint().geometry.text.cache_bytes(768)
    assert sum(one.end - one.begin for one in permanent) == cache_bytes == 2 * 4 * 768 * 4 * 64 * 4


def test_36_scratch_in_the_cache_fails(artifact: Artifact) -> None:
    """A tensor of the feed-forward planned into a cache: later calls would read it as keys."""
    plan = artifact.plans["text_decoder"]
    cache = next(one for one in tensor_lifetimes(plan) if one.permanent)
    scratch = next(one for one in tensor_lifetimes(plan) if one.first > 60)
    result = _judged(artifact, _moved(plan, scratch.value, (cache.arena, cache.begin)))
    assert result.verdict == "fail"
    assert "a cache will be overwritten" in result.message


def test_two_living_tensors_in_one_place_fail(artifact: Artifact) -> None:
    """Operands of one instruction moved onto each other."""
    plan = artifact.plans["text_decoder"]
    step = next(s for s in plan.instructions if s.kind == "delegate" and s.index > 58)
    first, second = (plan.values[index] for index in step.args[:2])
    assert isinstance(first, TensorValue) and isinstance(second, TensorValue) and first.place
    assert _judged(artifact, _moved(plan, step.args[1], first.place)).verdict == "fail"


def test_tensor_outside_its_arena_fails(artifact: Artifact) -> None:
    """An offset beyond the planned size."""
    plan = artifact.plans["text_decoder"]
    one = tensor_lifetimes(plan)[10]
    result = _judged(artifact, _moved(plan, one.value, (one.arena, plan.arenas_bytes[one.arena])))
    assert (result.verdict, "ends at byte" in result.message) == ("fail", True)
