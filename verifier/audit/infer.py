"""The recipe of a file without manifest, read from its bytes: groups, quantizer, bits of the embedding, form of the tower, lengths, kind of attention.

It is what most tensors have; each tensor is then held against the scheme that its own bytes show (`verifier.audit.expected`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from verifier.artifact.plan import TensorValue
from verifier.artifact.program import Artifact, TensorFacts
from verifier.audit.assign import assign_constants
from verifier.audit.caches import cache_length
from verifier.audit.expected import HEAD, QUANTIZERS, stored_form
from verifier.audit.inventory import Constant, take_inventory
from verifier.audit.recipe import quantized_linear
from verifier.backends.backend import GraphValue
from verifier.backends.xnnpack.context import constant_weights
from verifier.core.errors import ArtifactError
from verifier.core.types import EMBEDDING_GROUP, EmbeddingBits, Quantizer, Recipe, Vision
from verifier.export.quantize import default_group_size
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.family import Family, Parameter
from verifier.operators.operator import UnknownOperationError
from verifier.operators.registry import OPERATORS

Held = list[tuple[Constant, Parameter]]


def infer_recipe(artifact: Artifact, family: Family) -> Recipe:
    """What the file says of its recipe; this exporter's default where it says nothing."""
    operators = artifact.methods[DECODER].operators
    image = artifact.methods[ENCODER].inputs[0]
    inventory = _inventory(artifact)
    quantized = [one for one in inventory if one.method == DECODER and stored_form(one)]
    sizes = Counter(form[1] for one in quantized if (form := stored_form(one)) and form[1])
    usual = sizes.most_common(1)[0][0] if sizes else 0
    if usual % 32 or not usual:  # no recipe has such groups: the audit says so
        usual = default_group_size(family.checkpoint.geometry.text.width)
    recipe = Recipe(
        max_seq_len=artifact.max_seq_len,
        max_context_len=max(artifact.max_seq_len, cache_length(artifact) or 0),
        group_size=usual,
        embedding_bits=_embedding_bits(artifact),
        embedding_group_size=_embedding_group(inventory),
        use_sdpa_with_kv_cache=any(operator.attends for operator in OPERATORS.known(operators)),
        static_image_shape=family.convention.pixels == "bytes" and isinstance(image, TensorFacts) and not image.dynamic,
        vision=tower_storage(inventory),
    )
    held = _assigned(artifact, family, recipe, quantized)
    head = next((stored_form(constant) for constant, parameter in held if parameter.name == HEAD), None)
    if head is not None and head[1] not in (0, usual):
        recipe = replace(recipe, head_group_size=head[1])
    return replace(recipe, quantizer=_quantizer(artifact, family, recipe, held))


def _inventory(artifact: Artifact) -> list[Constant]:
    """All constants; none if a delegate cannot be read."""
    try:
        return take_inventory(artifact)
    except (ArtifactError, UnknownOperationError):
        return []


def _embedding_bits(artifact: Artifact) -> EmbeddingBits:
    known = OPERATORS.known(artifact.methods[EMBEDDING].operators)
    bits: list[EmbeddingBits] = [operator.table_bits for operator in known if operator.table_bits is not None]
    return bits[0] if bits else 8


def _embedding_group(inventory: list[Constant]) -> int:
    """Columns of the embedding table that share a scale, 0 for a whole row."""
    table = next((one for one in inventory if one.role == "embedding" and one.scales is not None), None)
    if table is None or not isinstance(table.scales, TensorValue):
        return EMBEDDING_GROUP
    rows, width = table.shape[0], table.shape[1] * (2 if table.value.dtype == "BYTE" else 1)
    groups = max(1, int(table.scales.size_bytes / 4 / max(rows, 1)))
    return 0 if groups == 1 else width // groups


def tower_storage(inventory: list[Constant]) -> Vision:
    """How most weights of the tower are stored."""
    weights = [one for one in inventory if one.method == ENCODER and one.role in ("linear", "convolution")]
    quantized = [one for one in weights if one.is_quantized]
    if 2 * len(quantized) < len(weights):
        return "fp32"
    dynamic = sum(one.role == "linear" and one.input_scale is None for one in quantized)
    return "dynamic" if 2 * dynamic > len(quantized) else "int8"


def _assigned(artifact: Artifact, family: Family, recipe: Recipe, quantized: list[Constant]) -> Held:
    """The decoder's linears of integers with their parameters, the smallest first."""
    assigned = assign_constants(quantized, family, artifact.storage, embedding_bits=recipe.embedding_bits)
    held = [(c, one.parameter) for c, one in zip(quantized, assigned, strict=True) if one.parameter is not None]
    return sorted(held, key=lambda pair: pair[0].value.size_bytes)


SAMPLED = 3
"""Linears by which the quantizer is chosen: the smallest ones."""


def _quantizer(artifact: Artifact, family: Family, recipe: Recipe, held: Held) -> Quantizer:
    """That which makes all integers of a linear, or most of those of some."""
    equal: Counter[Quantizer] = Counter()
    for constant, parameter in held[:SAMPLED]:
        assert isinstance(constant.value, GraphValue)
        stored, weight = constant_weights(constant.value, artifact.storage), family.checkpoint.tensor(parameter.key)
        form = stored_form(constant)
        if form is None or stored.shape != weight.shape:
            continue
        for quantizer in QUANTIZERS:
            scheme = replace(recipe.linears, bits=form[0], group_size=form[1], quantizer=quantizer)
            alike = int((quantized_linear(weight, scheme).integers == stored).sum())
            if alike == stored.numel():
                return quantizer
            equal[quantizer] += alike
    return equal.most_common(1)[0][0] if equal else recipe.quantizer
