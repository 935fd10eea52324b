"""The families that are known: a new one is a line here."""

from __future__ import annotations

from verifier.core.errors import CheckpointError
from verifier.families.checkpoint import Checkpoint
from verifier.families.conventions import EXECUTORCH_LLAVA, Convention
from verifier.families.family import Family
from verifier.families.llava.family import Llava

FAMILIES = {"llava": Llava}
"""By `model_type` of config.json."""


def open_family(checkpoint: Checkpoint, convention: Convention = EXECUTORCH_LLAVA) -> Family:
    """The family of a checkpoint, with programs of a convention. Raises `CheckpointError` for a checkpoint of no family."""
    kind = str(checkpoint.config.get("model_type", "llava"))
    if kind not in FAMILIES:
        raise CheckpointError(
            "the model family is not known", got=kind, expected=", ".join(FAMILIES), where=checkpoint.directory
        )
    return FAMILIES[kind](checkpoint, convention)
