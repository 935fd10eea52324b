"""The audit of a whole file: inventory, assignment, comparison; constants are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from verifier.artifact.plan import TensorValue
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Bytes, Span, Storage
from verifier.audit.assign import Assigned, assign_constants
from verifier.audit.compare import compare_constant, stored_contents
from verifier.audit.expected import Source, expected_contents, stored_bytes
from verifier.audit.inventory import Constant, take_inventory
from verifier.audit.own_scales import judge_by_own_scales
from verifier.audit.records import Audited, Misplaced
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerGroup
from verifier.core.progress import OnProgress, no_progress
from verifier.core.types import Recipe
from verifier.families.conventions import ROLES
from verifier.families.family import Family, Parameter

KEPT_BYTES = 256 << 20
"""What is kept of the recipe's constants between reads; a 7B decoder has 3.4 GB of them."""


@dataclass(frozen=True)
class Audit:
    """`constants` and `parameters` by their place in the inventory. `misplaced`: the first
    constant of each method that is out of order. `unused`: tensors of the checkpoint that LLaVA-1.5 does not use.
    `dead_bytes`: constants of the file that no instruction reads, such as the mask that custom SDPA made superfluous."""

    inventory: tuple[Constant, ...]
    parameters: tuple[Parameter | None, ...]
    constants: tuple[Audited, ...]
    misplaced: tuple[Misplaced, ...]
    unused: tuple[str, ...]
    dead_bytes: int
    source: Source


def audit_weights(
    artifact: Artifact,
    family: Family,
    recipe: Recipe,
    *,
    declared: bool = True,
    compare: bool = True,
    on_progress: OnProgress = no_progress,
) -> Audit:
    """Audit every constant, or only name them, which needs no contents but those that tell two parameters of one shape apart. A recipe that is not
    `declared` by a manifest says what is likely, and the bytes of each tensor decide. `on_progress` is called with how many are done. Raises
    `ArtifactError`, `CheckpointError`; nothing is run."""
    inventory = take_inventory(artifact)
    bits = recipe.embedding_bits
    assigned = assign_constants(inventory, family, artifact.storage, embedding_bits=bits)
    parameters = tuple(one.parameter for one in assigned)
    source = Source(family, recipe, declared)
    constants: list[Audited] = []
    for constant, one in zip(inventory, assigned, strict=True) if compare else ():
        on_progress("constants", len(constants), len(inventory))
        weight = inventory[constant.partner] if constant.partner is not None else None
        record = compare_constant(constant, one.parameter, source, artifact.storage, weight=weight)
        constants.append(replace(record, likeness=one.likeness))
    return Audit(
        tuple(inventory),
        parameters,
        tuple(constants if declared else judge_by_own_scales(constants)),
        tuple(_misplaced(inventory, assigned)),
        family.unused,
        _dead_bytes(artifact, inventory),
        source,
    )


def exact_linears(audit: Audit) -> dict[str, GraphValue]:
    """The 4-bit linears of the decoder that the file holds bit for bit as the recipe gives them, by the name of the weight."""
    found = {}
    for constant, parameter, audited in zip(audit.inventory, audit.parameters, audit.constants, strict=True):
        value = constant.value
        if parameter is None or audited.reason or constant.role != "linear" or not isinstance(value, GraphValue):
            continue
        if isinstance(value.quantization, PerGroup):
            found[parameter.name] = value
    return found


def with_recipe_constants(artifact: Artifact, audit: Audit, *, large: bool = False) -> Storage:
    """The file's storage with every constant replaced by what the recipe gives, each made when it is first read. Of a `large` model,
    those that the audit found to be equal are left as they are: to make 3.4 GB again takes minutes."""
    made: dict[Span, Bytes] = {}

    def reader(span: Span, constant: Constant, parameter: Parameter | None) -> Callable[[], Bytes]:
        def read() -> Bytes:
            if span not in made:
                stored = stored_contents(constant, artifact.storage, audit.source)
                expected = expected_contents(constant, parameter, audit.source, stored)
                assert expected is not None
                if sum(kept.nbytes for kept in made.values()) > KEPT_BYTES:
                    made.clear()
                made.update(stored_bytes(constant, expected, audit.source.recipe))
            return made[span]

        return read

    overrides: dict[Span, Callable[[], Bytes]] = {}
    for constant, parameter, audited in zip(audit.inventory, audit.parameters, audit.constants, strict=True):
        if audited.explained and not audited.noted and (audited.reason or not large):
            spans = [constant.value.constant]
            quantization = constant.stored_quantization
            spans += [quantization.scales] if isinstance(quantization, PerGroup) else []
            overrides |= {span: reader(span, constant, parameter) for span in spans if span is not None}
    return replace(artifact.storage, overrides=overrides)


def _dead_bytes(artifact: Artifact, inventory: list[Constant]) -> int:
    """Bytes of constant EValues that no instruction of any method uses."""
    used = {constant.value.constant for constant in inventory}
    declared = {
        value.constant
        for plan in artifact.plans.values()
        for value in plan.values
        if isinstance(value, TensorValue) and value.constant is not None
    }
    return sum(span.size for span in declared - used)


def _misplaced(inventory: list[Constant], assigned: Sequence[Assigned]) -> list[Misplaced]:
    """Parameters must be met in the order of the computation; within a stage (wq, wk, wv) any order is right. Constants that are like no parameter
    stand nowhere: that they are in another order says nothing."""
    misplaced = []
    for method in ROLES:
        held = [
            (constant, one.parameter)
            for constant, one in zip(inventory, assigned, strict=True)
            if one.parameter is not None and one.known and constant.method == method
        ]
        ordered = sorted((parameter for _, parameter in held), key=lambda parameter: parameter.order)
        for (constant, parameter), expected in zip(held, ordered, strict=True):
            if parameter.order != expected.order:
                misplaced.append(Misplaced(method, constant.instruction, parameter.module, expected.module))
                break
    return misplaced
