"""Activations of the definition against Hugging Face's, both in fp32: the figures, not the arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verifier.core.compare import Mismatch, compare
from verifier.families.definition import Definition
from verifier.families.family import Family
from verifier.families.samples import LayerPair, Sample
from verifier.measures.against_fp32 import LayerError

MAPPING_SAMPLES = 2


def measure_mapping(
    family: Family, definition: Definition, samples: Sequence[Sample]
) -> dict[str, tuple[LayerError, ...]]:
    """Errors of image tokens, decoder layers and logits by image, for a few samples, for one if the model is large. Raises `CheckpointError`."""
    chosen = samples[: 1 if family.large else MAPPING_SAMPLES]
    compared = family.compare_with_hugging_face(definition, chosen)
    return {sample.golden.name: layer_errors(pairs) for sample, pairs in zip(chosen, compared, strict=True)}


def layer_errors(pairs: Iterable[LayerPair]) -> tuple[LayerError, ...]:
    """The error of every activation."""
    return tuple(_layer_error(pair) for pair in pairs)


def _layer_error(pair: LayerPair) -> LayerError:
    made = compare(actual=pair.actual, expected=pair.expected)
    if isinstance(made, Mismatch):
        return LayerError(pair.name, float("nan"), made.index, made.reason)
    return LayerError(pair.name, made.sqnr_db, made.worst().index)
