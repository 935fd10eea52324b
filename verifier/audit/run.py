"""The audit of a whole file: inventory, assignment, comparison; constants are read one at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from verifier.artifact.program import Artifact
from verifier.artifact.xnnpack import GraphValue, PerTensor
from verifier.audit.assign import Parameter, assign_constants
from verifier.audit.compare import Audited, Source, compare_constant
from verifier.audit.inventory import Constant, take_inventory
from verifier.audit.recipe import quantized_embedding
from verifier.checkpoint import Checkpoint
from verifier.interpret.machine import constant_tensor
from verifier.model.keymap import map_keys
from verifier.types import Recipe


@dataclass(frozen=True)
class Misplaced:
    """A constant that stands where another belongs."""

    method: str
    instruction: int
    found: str
    expected: str


@dataclass(frozen=True)
class Audit:
    """`constants` by their place in the inventory. `missing`: parameters that no constant holds. `misplaced`: the first
    constant of each method that is out of order. `unused`: tensors of the checkpoint that LLaVA-1.5 does not use."""

    inventory: tuple[Constant, ...]
    parameters: tuple[Parameter | None, ...]
    constants: tuple[Audited, ...]
    missing: tuple[str, ...]
    misplaced: tuple[Misplaced, ...]
    unused: tuple[str, ...]


def audit_weights(artifact: Artifact, checkpoint: Checkpoint, recipe: Recipe) -> Audit:
    """Audit every constant. Raises `ArtifactError`, `CheckpointError`; nothing is run."""
    keys = map_keys(checkpoint.keys, checkpoint.geometry)
    inventory = take_inventory(artifact)
    bits = recipe.embedding_bits
    assigned = assign_constants(inventory, keys, checkpoint, artifact.storage, embedding_bits=bits)
    source = Source(
        artifact.storage,
        checkpoint.geometry,
        recipe,
        checkpoint.tensor,
        lambda place: _scale(inventory[place]) if 0 <= place < len(inventory) else None,
    )
    pairs = zip(inventory, assigned.parameters, strict=True)
    constants = [compare_constant(constant, parameter, source) for constant, parameter in pairs]
    constants = [
        _embedding_scales(c, r, artifact, checkpoint, recipe, keys.embedding)
        for c, r in zip(inventory, constants, strict=True)
    ]
    return Audit(
        tuple(inventory),
        assigned.parameters,
        tuple(constants),
        tuple(parameter.name for parameter in assigned.missing),
        tuple(_misplaced(inventory, assigned.parameters)),
        tuple(sorted(keys.unused)),
    )


def _scale(constant: Constant) -> float | None:
    value = constant.value
    quantization = value.quantization if isinstance(value, GraphValue) else None
    return quantization.scale if isinstance(quantization, PerTensor) else None


def _embedding_scales(  # noqa: PLR0917
    constant: Constant, record: Audited, artifact: Artifact, checkpoint: Checkpoint, recipe: Recipe, key: str
) -> Audited:
    if constant.role != "embedding scales" or isinstance(constant.value, GraphValue):
        return record
    stored = constant_tensor(constant.value, artifact.storage)
    expected = quantized_embedding(checkpoint.tensor(key), recipe).scales.reshape(stored.shape)
    off = stored != expected
    if not bool(off.any()):
        return replace(record, key=key)
    row, column = (int(i) for i in torch.nonzero(off.reshape(len(stored), -1))[0])
    reason = f"{int(off.sum()):,} of {off.numel():,} scales differ from the recipe's, the first for token {row}, group {column}"
    return replace(record, key=key, wrong=int(off.sum()), index=(row, column), reason=reason)


def _misplaced(inventory: list[Constant], parameters: tuple[Parameter | None, ...]) -> list[Misplaced]:
    """Parameters must be met in the order of the computation; within a stage (wq, wk, wv) any order is right."""
    found = []
    for method in ("vision_encoder", "text_decoder"):
        held = [
            (constant, parameter)
            for constant, parameter in zip(inventory, parameters, strict=True)
            if parameter is not None and constant.method == method
        ]
        ordered = sorted((parameter for _, parameter in held), key=lambda parameter: parameter.order)
        for (constant, parameter), expected in zip(held, ordered, strict=True):
            if parameter.order != expected.order:
                found.append(Misplaced(method, constant.instruction, parameter.name, expected.name))
                break
    return found
