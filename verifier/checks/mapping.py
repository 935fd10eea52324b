"""`mapping.*`: the definition against Hugging Face, both in fp32. Only rounding may differ."""

from __future__ import annotations

from verifier.checks.common import Check, one_case
from verifier.core.compare import EQUAL_DB, Mismatch, compare
from verifier.core.limits import limit
from verifier.evidence import Evidence
from verifier.types import CheckResult, Where

LIMIT = limit("mapping.activations")


def activations(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Image tokens, every decoder layer, and logits agree to 100 dB; the first layer that does not is named."""
    if not evidence.mapping:
        return [check.error("program", "nothing was compared with Hugging Face")]
    worst: tuple[float, str] = (EQUAL_DB, "")
    for image, pairs in evidence.mapping.items():
        for pair in pairs:
            where = Where(method="vision_encoder" if pair.name == "vision" else "text_decoder", module=pair.name)
            made = compare(actual=pair.actual, expected=pair.expected)
            if isinstance(made, Mismatch):
                return [
                    check.failed(
                        "program",
                        f"{pair.name} on {image}: {made.reason}. Check the key map and config.json.",
                        where=Where(method=where.method, module=pair.name, index=made.index),
                    )
                ]
            value = made.sqnr_db
            worst = min(worst, (value, f"{pair.name} on {image}"))
            if not LIMIT.admits(value):
                index = made.worst().index
                return [
                    check.failed(
                        "program",
                        f"the definition departs from Hugging Face first in {pair.name} on {image}: {value:.1f} dB, allowed at least {LIMIT.value:g} dB. "
                        "Check key map, RoPE, norm epsilon, mask and feature layer.",
                        measured={"sqnr_db": value},
                        allowed={"sqnr_db": LIMIT.value},
                        where=Where(method=where.method, module=pair.name, index=index),
                    )
                ]
    count = sum(len(pairs) for pairs in evidence.mapping.values())
    if not count:
        return [check.error("program", "nothing was compared with Hugging Face")]
    return [
        check.passed(
            "program",
            f"{count} activations agree with Hugging Face, worst {worst[0]:.0f} dB in {worst[1]}",
            measured={"sqnr_db": worst[0], "compared": count},
            allowed={"sqnr_db": LIMIT.value},
        )
    ]


CHECKS = (Check("mapping.activations", "mapping", one_case, activations),)
