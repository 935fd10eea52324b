"""`vision.*`: image tokens of the int8 encoder against fp32, on every golden image."""

from __future__ import annotations

import numpy as np

from verifier.checks.channels import worst_channel
from verifier.checks.common import Check, Measure, judge, one_case, per_image
from verifier.core.compare import Array, Difference, Mismatch, compare, compare_all
from verifier.evidence import Case, Evidence
from verifier.types import CheckResult, Where

SQNR = "vision.sqnr_db"
"""The metric of whole image tokens, over all of them."""


def channel_center(evidence: Evidence) -> Array:
    """Mean of every channel over all image tokens of all golden images in fp32: [D]. What all images have in common says
    nothing about an image, and would drown what differs."""
    out: Array = np.concatenate([case.expected.vision for case in evidence.cases]).mean(0)
    return out


def compare_about(case: Case, center: Array) -> Difference | Mismatch:
    """The image tokens [P, D] of a case against fp32's, both about the common mean."""
    made = compare(actual=case.vision, expected=case.expected.vision)
    if isinstance(made, Mismatch):
        return made
    return compare(actual=made.actual - center, expected=made.expected - center)


def vision_measures(made: Difference) -> list[Measure]:
    """SQNR of all image tokens together, and of the worst tenth of them one by one, both about the common mean."""
    return [
        Measure(SQNR, made.sqnr_db, "dB"),
        Measure("vision.token_sqnr_p10_db", float(np.percentile(made.row_sqnr_db, 10)), "dB"),
    ]


def embedding(check: Check, evidence: Evidence) -> list[CheckResult]:
    """SQNR over the image and over its weakest tokens stays in the calibrated band."""
    center = channel_center(evidence)
    return [_embedding(check, evidence, case, center) for case in evidence.cases]


def _embedding(check: Check, evidence: Evidence, case: Case, center: Array) -> CheckResult:
    name = case.sample.golden.name
    if case.vision is None:
        return check.failed(
            name,
            f"vision_encoder did not return: {evidence.runtime.conversations.message}",
            where=Where(method="vision_encoder"),
            accuses="calls",
        )
    made = compare_about(case, center)
    if isinstance(made, Mismatch):
        return check.failed(
            name,
            f"image tokens: {made.reason}. Look for an overflow or an uninitialized buffer.",
            where=Where("vision_encoder", index=made.index),
        )
    rows = made.row_sqnr_db
    token = int(rows.argmin())
    side = round(len(rows) ** 0.5)
    return judge(
        check,
        evidence,
        name,
        vision_measures(made),
        what="image tokens against fp32",
        where=Where(method="vision_encoder", module="projector", index=(token,)),
        hint=f"The worst image token is {token} (row {token // side}, column {token % side}), {rows[token]:.1f} dB. Check calibration images, channel order and vision weights.",
    )


def channels(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Over all golden images, no output channel of the projector has another gain or offset than in fp32."""
    made = compare_all((case.vision, case.expected.vision) for case in evidence.cases)
    if isinstance(made, Mismatch):
        return [check.error("program", f"the image tokens cannot be fitted: {made.reason}; see vision.embedding")]
    worst = worst_channel(made)
    gain, offset = worst.fit.gain[worst.gain_channel], worst.offset_change
    return [
        judge(
            check,
            evidence,
            "program",
            [
                Measure("vision.channel_gain_change", worst.gain_change, ""),
                Measure("vision.channel_offset_change", offset, "sd"),
            ],
            what="projector channels",
            where=Where(method="vision_encoder", module="projector.linear_2", index=(worst.gain_channel,)),
            hint=f"Channel {worst.gain_channel} has gain {gain:.3f}, channel {worst.offset_channel} is off by {offset:.3f} standard deviations. "
            "Check scales and biases of the projector.",
        )
    ]


CHECKS = (
    Check("vision.embedding", "quantization", per_image, embedding),
    Check("vision.channels", "quantization", one_case, channels),
)
