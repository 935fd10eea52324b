"""The families that are known: a new one is a line here."""

from __future__ import annotations

from verifier.checkpoint import Checkpoint
from verifier.families.family import Family
from verifier.families.llava.family import Llava

FAMILIES = {"llava": Llava}
"""By `model_type` of config.json."""


def open_family(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint. A checkpoint of no family is refused when its geometry is read."""
    return FAMILIES[str(checkpoint.config.get("model_type", "llava"))](checkpoint)
