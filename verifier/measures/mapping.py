"""Activations of the definition against Hugging Face's, both in fp32: the figures, not the arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verifier.core.compare import Mismatch, compare
from verifier.families.family import Family
from verifier.families.llava.definition import Definition
from verifier.families.llava.hugging_face import (
    LayerPair,
    compare_layer_by_layer,
    compare_with_hugging_face,
    load_hugging_face,
)
from verifier.families.samples import Sample
from verifier.measures.against_fp32 import LayerError

MAPPING_SAMPLES = 2


def measure_mapping(
    family: Family, definition: Definition, samples: Sequence[Sample]
) -> dict[str, tuple[LayerError, ...]]:
    """Errors of image tokens, decoder layers and logits by image, for a few samples, for one if the model is large. Raises `CheckpointError`."""
    if family.large:
        return {
            s.golden.name: layer_errors(compare_layer_by_layer(family.checkpoint, definition, s)) for s in samples[:1]
        }
    model = load_hugging_face(family.checkpoint)
    return {
        s.golden.name: layer_errors(compare_with_hugging_face(model, definition, s)) for s in samples[:MAPPING_SAMPLES]
    }


def layer_errors(pairs: Iterable[LayerPair]) -> tuple[LayerError, ...]:
    """The error of every activation."""
    return tuple(_layer_error(pair) for pair in pairs)


def _layer_error(pair: LayerPair) -> LayerError:
    made = compare(actual=pair.actual, expected=pair.expected)
    if isinstance(made, Mismatch):
        return LayerError(pair.name, float("nan"), made.index, made.reason)
    return LayerError(pair.name, made.sqnr_db, made.worst().index)
