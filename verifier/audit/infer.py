"""The recipe of a file without manifest, read from its bytes: group size, quantizer, bits of the embedding, lengths, kind of attention."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from verifier.artifact.program import Artifact, TensorFacts
from verifier.audit.caches import cache_length
from verifier.audit.inventory import Constant, take_inventory
from verifier.audit.recipe import quantized_linear
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerGroup
from verifier.backends.xnnpack.context import constant_weights
from verifier.core.errors import ArtifactError
from verifier.core.types import Quantizer, Recipe
from verifier.export.run import default_group_size
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.family import Family
from verifier.operators.operator import UnknownOperationError
from verifier.operators.registry import OPERATORS

HEAD = f"{DECODER}.output.weight"
"""The output head: of the decoder's linears the one that no two models share."""


def infer_recipe(artifact: Artifact, family: Family) -> Recipe:
    """What the file says of its recipe; this exporter's default where it says nothing."""
    operators = artifact.methods[DECODER].operators
    lookups = artifact.methods[EMBEDDING].operators
    image = artifact.methods[ENCODER].inputs[0]
    grouped = _grouped_linears(artifact)
    sizes = Counter(quantization.group_size for _, quantization in grouped)
    usual = sizes.most_common(1)[0][0] if sizes else default_group_size(family.checkpoint.geometry.text.width)
    make = partial(
        Recipe,
        max_seq_len=artifact.max_seq_len,
        max_context_len=max(artifact.max_seq_len, cache_length(artifact) or 0),
        embedding_bits=next((op.table_bits for op in OPERATORS.known(lookups) if op.table_bits is not None), 8),
        use_sdpa_with_kv_cache=any(operator.attends for operator in OPERATORS.known(operators)),
        static_image_shape=isinstance(image, TensorFacts) and not image.dynamic,
    )
    if usual % 32:  # no recipe has such groups: the audit says so
        return make(group_size=default_group_size(family.checkpoint.geometry.text.width))
    recipe = make(group_size=usual)
    return replace(recipe, quantizer=_quantizer(artifact, family, recipe, [constant for constant, _ in grouped]))


def _grouped_linears(artifact: Artifact) -> list[tuple[Constant, PerGroup]]:
    """The decoder's linears that are quantized in groups, in program order; none if its delegates cannot be read."""
    try:
        inventory = take_inventory(artifact)
    except (ArtifactError, UnknownOperationError):
        return []
    return [
        (constant, constant.value.quantization)
        for constant in inventory
        if constant.method == DECODER
        and constant.role == "linear"
        and isinstance(constant.value, GraphValue)
        and isinstance(constant.value.quantization, PerGroup)
    ]


def _quantizer(artifact: Artifact, family: Family, recipe: Recipe, linears: list[Constant]) -> Quantizer:
    """That which makes more of the integers of the output head, the last linear of its shape."""
    head = next(parameter for parameter in family.parameters() if parameter.name == HEAD)
    output = family.checkpoint.tensor(head.key)
    alike = [linear for linear in linears if linear.shape == tuple(output.shape)]
    if not alike or not isinstance(alike[-1].value, GraphValue):
        return recipe.quantizer
    stored = constant_weights(alike[-1].value, artifact.storage)
    equal = {}
    kinds: tuple[Quantizer, ...] = ("affine", "hqq")
    for kind in kinds:
        made = quantized_linear(output, replace(recipe, quantizer=kind)).integers
        equal[kind] = int((made == stored).sum())
        if equal[kind] == stored.numel():
            return kind
    return max(kinds, key=lambda kind: equal[kind])
