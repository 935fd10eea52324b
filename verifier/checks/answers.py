"""Whether a program answers at all, and whether its answers depend on the image."""

from __future__ import annotations

from itertools import combinations, takewhile
from typing import Literal

import numpy as np

from verifier.checks.bands import Conversations, conversations
from verifier.checks.check import ALL_IMAGES, Fields, Finding, check, failed, one_case, passed, unverified
from verifier.core.compare import Array, Mismatch, compare, refusal
from verifier.core.limits import LIMITS
from verifier.core.types import Where
from verifier.families.conventions import DECODER, ENCODER
from verifier.measures.evidence import Evidence

TIE, APART = LIMITS["greedy.golden.tie"], LIMITS["greedy.images"]


def no_call_returned(evidence: Evidence) -> Finding:
    """A failure of a program whose calls did not return."""
    return failed(
        f"the program returned no answer: {evidence.runtime.message}", where=Where(method=DECODER), accuses="calls"
    )


def no_answer(evidence: Evidence, logits: Array | None) -> Finding | None:
    """A failure if there are no logits to choose tokens from, or if they are not numbers: the largest of them is no answer."""
    if logits is None:
        return no_call_returned(evidence)
    reason = refusal(logits)
    if reason is not None:
        said = f"the logits are not finite, so there is no answer: {reason.reason}"
        return failed(said, where=Where(method=DECODER, index=reason.index))
    vocabulary = evidence.geometry.text.vocabulary
    if logits.ndim != 2 or logits.shape[1] != vocabulary:
        said = f"the logits have shape {list(logits.shape)}, expected [tokens, {vocabulary}]"
        return failed(said, where=Where(method=DECODER))
    return None


@check(
    "greedy.images",
    step="mapping",
    needs=conversations,
    cases=one_case,
    limit=APART.id,
    having={ALL_IMAGES},
    overlap="a program that does not look at its picture also gives wrong answers; this one needs no reference",
)
def images(given: Conversations, _case: str) -> Finding:
    """Between two images the program's free-running answers differ, or, where they or the reference's are alike, its logits do, at least half as much
    as the reference's: it does not reuse an earlier image."""
    evidence, own = given.evidence, dict[str, Array]()
    for name, logits in evidence.runtime.free.items():
        silent = no_answer(evidence, logits)
        if silent is not None:
            return silent
        assert logits is not None
        own[name] = logits
    compared, least = 0, float("inf")
    for one, two in combinations(own, 2):
        alike = _alike(given, own, one, two)
        share = None if alike is None else _share_apart(given, own, one, two)
        asked_alike = given.cases[one].sample.prompt == given.cases[two].sample.prompt
        if share is None and alike is not None and (asked_alike or alike == "both"):
            continue
        compared += 1
        least = least if share is None else min(least, share)
        if alike is not None and (share is None or not APART.admits(share)):
            said = f"the answers to {two} and {one} are the same, {evidence.tokens.decode(_favoured(own[two]))!r}, although the images differ"
            if share is not None:
                said += f": the logits are {share:.0%} as far apart as those of fp32"
            hint = "The image of an earlier request is used again, or no image is used: check that vision_encoder runs for each."
            fields: Fields = {} if share is None else {"measured": {"apart": share}, "allowed": {"apart": APART.value}}
            return failed(f"{said}. {hint}", fields, where=Where(method=ENCODER))
    if not compared:
        return unverified(
            "the fp32 reference answers the free-running images alike, with logits that do not differ either, or to different questions, so nothing can be compared: add an image with another answer"
        )
    if np.isfinite(least):
        said = f"{len(own)} images: where answers are alike, the logits are at least {least:.0%} as far apart as those of fp32"
        return passed(said, measured={"pairs": compared, "apart": least}, allowed={"apart": APART.value})
    return passed(f"{len(own)} images, different answers", measured={"pairs": compared})


def _favoured(logits: Array) -> list[int]:
    return [int(token) for token in logits.argmax(-1)]


def _alike(given: Conversations, own: dict[str, Array], one: str, two: str) -> Literal["program", "both"] | None:
    """Whose answers to two images are alike: the program's alone, or the reference's (with which nothing else tells the images apart). None if both
    tell the images apart."""
    if given.cases[one].sample.golden.ids == given.cases[two].sample.golden.ids:
        return "both"
    first, second = _favoured(own[one]), _favoured(own[two])
    shorter = min(len(first), len(second))
    return "program" if first[:shorter] == second[:shorter] else None


def _share_apart(given: Conversations, own: dict[str, Array], one: str, two: str) -> float | None:
    """How far apart the program's logits for two images are, in units of the reference's distance: 0 for a program that does not look at the image;
    noise only adds. As far as all answers are the same. None if the questions differ, if the reference's logits do not, or if some are not numbers."""
    cases = given.cases[one], given.cases[two]
    if cases[0].sample.prompt != cases[1].sample.prompt:
        return None
    answers = [_favoured(own[one]), _favoured(own[two]), *(list(case.sample.golden.ids) for case in cases)]
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers, strict=False))
    rows = min(sum(1 for _ in same) + 1, *map(len, answers))
    expected = compare(actual=cases[0].expected.logits[:rows], expected=cases[1].expected.logits[:rows])
    actual = compare(actual=own[one][:rows], expected=own[two][:rows])
    if isinstance(expected, Mismatch) or isinstance(actual, Mismatch):
        return None
    apart = [np.abs(made.actual.astype(np.float64) - made.expected) for made in (actual, expected)]
    if TIE.admits(float(apart[1].max())):
        return None
    return float(np.linalg.norm(apart[0]) / np.linalg.norm(apart[1]))
