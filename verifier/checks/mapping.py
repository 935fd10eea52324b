"""`mapping.*`: the definition against Hugging Face, both in fp32. Only rounding may differ."""

from __future__ import annotations

from verifier.checks.check import Finding, check, failed, need, one_case, passed
from verifier.core.compare import EQUAL_DB
from verifier.core.limits import limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER, ENCODER
from verifier.measures.against_fp32 import LayerError
from verifier.measures.evidence import Evidence, Part

LIMIT = limit("mapping.activations")


Activations = dict[str, tuple[LayerError, ...]]
"""By image."""


@need(Part.MAPPING)
def both(evidence: Evidence) -> Activations | Missing:
    """Activations of Hugging Face and of the definition."""
    if not any(evidence.mapping.values()):
        return Missing("nothing was compared with Hugging Face", "verifier")
    return evidence.mapping


@check(
    "mapping.activations",
    step="mapping",
    needs=both,
    cases=one_case,
    limit="mapping.activations",
    overlap="it judges our own definition: a fault of it would change what all programs are compared with, and is tried by tests",
)
def activations(mapping: Activations, _case: str) -> Finding:
    """Image tokens, the output of every decoder layer and the logits of the definition agree with Hugging Face's to 100 dB. The first layer that does
    not is named."""
    worst: tuple[float, str] = (EQUAL_DB, "")
    for image, errors in mapping.items():
        for error in errors:
            method = ENCODER if error.name == "vision" else DECODER
            where = Where(method=method, module=error.name, index=error.index)
            if error.reason:
                return failed(
                    f"{error.name} on {image}: {error.reason}. Check the key map and config.json.", where=where
                )
            worst = min(worst, (error.sqnr_db, f"{error.name} on {image}"))
            if not LIMIT.admits(error.sqnr_db):
                return failed(
                    f"the definition differs from Hugging Face first in {error.name} on {image}: {error.sqnr_db:.1f} dB, allowed at least {LIMIT.value:g} dB. "
                    "Check key map, RoPE, norm epsilon, mask and feature layer.",
                    measured={"sqnr_db": error.sqnr_db},
                    allowed={"sqnr_db": LIMIT.value},
                    where=where,
                )
    count = sum(len(errors) for errors in mapping.values())
    return passed(
        f"{count} activations agree with Hugging Face, worst {worst[0]:.0f} dB in {worst[1]}",
        measured={"sqnr_db": worst[0], "compared": count},
        allowed={"sqnr_db": LIMIT.value},
    )


CHECKS = (activations,)
