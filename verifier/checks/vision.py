"""`vision.*`: image tokens of the int8 encoder against fp32, on every golden image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.checks.bands import Conversations, Measure, conversations, judge, take_conversations
from verifier.checks.check import ALL_IMAGES, Finding, check, failed, need, one_case, per_image, unverified
from verifier.core.compare import Array, Difference, Mismatch, compare, compare_all
from verifier.core.prices import judged_by
from verifier.core.types import Missing, Where
from verifier.families.conventions import ENCODER
from verifier.measures.channels import worst_channel
from verifier.measures.evidence import Case, Evidence, Part

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


@dataclass(frozen=True)
class Images(Conversations):
    """The golden conversations, and what the image tokens of all of them have in common in fp32, [D]."""

    center: Array


@need(Part.CONVERSATIONS, golden=True, computed=True)
def images(evidence: Evidence) -> Images | Missing:
    """Image tokens about their common mean."""
    found = take_conversations(evidence)
    return found if isinstance(found, Missing) else Images(evidence, found.cases, channel_center(evidence))


SQNRS = (SQNR, "vision.token_sqnr_p10_db")


@check(
    "vision.embedding",
    step="quantization",
    needs=images,
    cases=per_image,
    limit=judged_by(*SQNRS),
    having={ALL_IMAGES},
    explained_by="layers.ranges",
    overlap="what is wrong with image tokens is wrong in a layer before; this one is the sum of all layers",
)
def embedding(given: Images, name: str) -> Finding:
    """The SQNR of all image tokens together, and of the weakest tenth of them, stays within the calibrated band, or within the budget of quantization where
    there is none."""
    case, evidence = given.cases[name], given.evidence
    if case.vision is None:
        return failed(
            f"{ENCODER} did not return: {evidence.runtime.message}",
            where=Where(method=ENCODER),
            accuses="calls",
        )
    made = compare_about(case, given.center)
    if isinstance(made, Mismatch):
        return failed(
            f"image tokens: {made.reason}. Look for an overflow or an uninitialized buffer.",
            where=Where(ENCODER, index=made.index),
        )
    rows = made.row_sqnr_db
    token = int(rows.argmin())
    side = round(len(rows) ** 0.5)
    return judge(
        evidence,
        name,
        vision_measures(made),
        what="image tokens against fp32",
        where=Where(method=ENCODER, module="projector", index=(token,)),
        hint=f"The worst image token is {token} (row {token // side}, column {token % side}), {rows[token]:.1f} dB. Check calibration images, channel order and vision weights.",
    )


CHANNELS = ("vision.channel_gain_change", "vision.channel_offset_change")


@check(
    "vision.channels",
    step="quantization",
    needs=conversations,
    cases=one_case,
    limit=judged_by(*CHANNELS),
    explained_by="layers.ranges",
    having={ALL_IMAGES},
    overlap="a channel that is off also costs the image tokens; this one says which channel",
)
def channels(given: Conversations, case: str) -> Finding:
    """Over all golden images, every output channel of the projector has the gain and offset that it has in fp32, but for band or budget."""
    made = compare_all((one.vision, one.expected.vision) for one in given.cases.values())
    if isinstance(made, Mismatch):
        return unverified(f"the channels cannot be compared: {made.reason}; see vision.embedding")
    worst = worst_channel(made)
    gain, offset = worst.fit.gain[worst.gain_channel], worst.offset_change
    return judge(
        given.evidence,
        case,
        [
            Measure("vision.channel_gain_change", worst.gain_change, ""),
            Measure("vision.channel_offset_change", offset, "sd"),
        ],
        what="projector channels",
        where=Where(method=ENCODER, module="projector.linear_2", index=(worst.gain_channel,)),
        hint=f"Channel {worst.gain_channel} has gain {gain:.3f}, channel {worst.offset_channel} has its offset changed by {offset:.3f} standard deviations. "
        "Check scales and biases of the projector.",
    )


CHECKS = (embedding, channels)
