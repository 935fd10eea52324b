"""All faults of the bench, and the rows of the field's faults that they stand for."""

from __future__ import annotations

from verifier.faults import in_constants, in_program, in_recipe, in_runtime, in_use
from verifier.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *in_constants.FAULTS,
    *in_program.FAULTS,
    *in_recipe.FAULTS,
    *in_use.FAULTS,
    *in_runtime.FAULTS,
)
EXCEPTIONS: dict[str, str] = {
    "clamp-too-many": "the interpreter had no semantics for XNNClamp in this run, so the census alone spoke; it has now, and layers.graph names the block",
    "per-tensor-activations": "the trace was changed at wv but not in the cache, and that contradiction was found; it is changed at wo now",
    "delegation-lost": "the faulty export itself failed in this run, so nothing was injected; it is another export now",
}
"""Why a fault is not found, or blamed elsewhere; by its name."""
