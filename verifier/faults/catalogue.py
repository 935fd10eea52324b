"""All faults of the bench, and the rows of the field's faults that they stand for."""

from __future__ import annotations

from verifier.faults import in_checkpoint, in_constants, in_program, in_recipe, in_runtime, in_tokenizer, in_use
from verifier.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *in_constants.FAULTS,
    *in_program.FAULTS,
    *in_recipe.FAULTS,
    *in_use.FAULTS,
    *in_tokenizer.FAULTS,
    *in_checkpoint.FAULTS,
    *in_runtime.FAULTS,
)
EXCEPTIONS: dict[str, str] = {}
"""Why a fault is not found, or blamed elsewhere; by its name."""
