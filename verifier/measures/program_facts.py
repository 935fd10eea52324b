"""From a program to what checks look at: `ProgramFacts`, and the signatures that its methods should have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from verifier.artifact.plan import Plan
from verifier.artifact.program import Artifact
from verifier.audit.caches import cache_length
from verifier.audit.handover import handovers
from verifier.audit.lifetimes import find_overlaps, lifetimes, outside_arena
from verifier.backends.calls import census_of
from verifier.core.errors import ArtifactError
from verifier.core.types import Missing
from verifier.families.conventions import ENCODER, ROLES, Signature, most_tokens
from verifier.families.family import Family
from verifier.measures.program import PlannedMemory, ProgramFacts, ScalarFactor
from verifier.operators.registry import is_heavy

T = TypeVar("T")


def program_facts(artifact: Artifact) -> ProgramFacts:
    """What checks look at of a program."""
    operators = {name: None for facts in artifact.methods.values() for name in facts.operators}
    return ProgramFacts(
        artifact.path,
        artifact.sha256,
        artifact.methods,
        file_bytes=artifact.header.file_bytes,
        heavy=tuple(filter(is_heavy, operators)),
        census=_readable(census_of, artifact),
        handovers=_readable(handovers, artifact),
        vision_factors=_factors(artifact.plans[ENCODER]),
        memory={method: _planned(artifact.plans[method]) for method in ROLES},
        cache_positions=cache_length(artifact),
    )


def expected_signatures(artifact: Artifact, family: Family) -> dict[str, Signature]:
    """The signature of every method that computes, by the program's convention, at the numbers of tokens that its methods take: whether these are
    enough is asked by `structure.limits`. Raises `ArtifactError` for a program without inputs that does not state its length either."""
    tokens = {role: most_tokens(artifact.methods[role]) or artifact.max_seq_len for role in ROLES}
    return {role: family.convention.signature(role, family.sizes(tokens[role])) for role in ROLES}


def _readable(read: Callable[[Artifact], T], artifact: Artifact) -> T | Missing:
    try:
        return read(artifact)
    except ArtifactError as error:
        return Missing(error.one_line, "program")


def _factors(plan: Plan) -> tuple[ScalarFactor, ...]:
    """Queries and keys are each multiplied by the fourth root, as PyTorch decomposes attention, or an operator is given the root."""
    found = []
    for step in plan.instructions:
        for name, place, exponent in (("aten::mul.Scalar_out", 1, -0.25), ("llama::custom_sdpa.out", 7, -0.5)):
            value = plan.values[step.args[place]] if step.name == name and len(step.args) > place else None
            if value is not None:
                number = value if isinstance(value, (int, float, str)) else str(value)
                found.append(ScalarFactor(step.index, number, exponent))
    return tuple(found)


def _planned(plan: Plan) -> PlannedMemory:
    outside, overlaps = outside_arena(plan), find_overlaps(plan)
    return PlannedMemory(
        plan.arenas_bytes,
        tensors=tuple(lifetimes(plan)),
        outside=outside[0] if outside else None,
        overlaps=len(overlaps),
        overlap=overlaps[0] if overlaps else None,
    )
