"""`mapping.*`: the definition against Hugging Face, both in fp32. Only rounding may differ."""

from __future__ import annotations

from verifier.checks.check import Finding, check, failed, need, one_case, passed
from verifier.core.compare import EQUAL_DB, Mismatch, compare
from verifier.core.limits import limit
from verifier.evidence import Evidence, Part
from verifier.families.conventions import DECODER, ENCODER
from verifier.reference import LayerPair
from verifier.types import Missing, Where

LIMIT = limit("mapping.activations")


Activations = dict[str, list[LayerPair]]
"""By image."""


@need(Part.MAPPING)
def both(evidence: Evidence) -> Activations | Missing:
    """Activations of Hugging Face and of the definition."""
    if not any(evidence.mapping.values()):
        return Missing("nothing was compared with Hugging Face", "verifier")
    return evidence.mapping


@check("mapping.activations", step="mapping", needs=both, cases=one_case, limit="mapping.activations")
def activations(mapping: Activations, _case: str) -> Finding:
    """Image tokens, the output of every decoder layer and the logits of the definition agree with Hugging Face's to 100 dB. The first layer that does
    not is named."""
    worst: tuple[float, str] = (EQUAL_DB, "")
    for image, pairs in mapping.items():
        for pair in pairs:
            where = Where(method=ENCODER if pair.name == "vision" else DECODER, module=pair.name)
            made = compare(actual=pair.actual, expected=pair.expected)
            if isinstance(made, Mismatch):
                return failed(
                    f"{pair.name} on {image}: {made.reason}. Check the key map and config.json.",
                    where=Where(method=where.method, module=pair.name, index=made.index),
                )
            value = made.sqnr_db
            worst = min(worst, (value, f"{pair.name} on {image}"))
            if not LIMIT.admits(value):
                index = made.worst().index
                return failed(
                    f"the definition departs from Hugging Face first in {pair.name} on {image}: {value:.1f} dB, allowed at least {LIMIT.value:g} dB. "
                    "Check key map, RoPE, norm epsilon, mask and feature layer.",
                    measured={"sqnr_db": value},
                    allowed={"sqnr_db": LIMIT.value},
                    where=Where(method=where.method, module=pair.name, index=index),
                )
    count = sum(len(pairs) for pairs in mapping.values())
    return passed(
        f"{count} activations agree with Hugging Face, worst {worst[0]:.0f} dB in {worst[1]}",
        measured={"sqnr_db": worst[0], "compared": count},
        allowed={"sqnr_db": LIMIT.value},
    )


CHECKS = (activations,)
