"""`pixels.*`: what the apps that ship a LLaVA make of a picture: whether the program takes the sizes, and whether the model still says the same."""

from __future__ import annotations

import math

from verifier.checks.check import Fields, Finding, check, failed, need, passed, unverified
from verifier.core.limits import Limit, limit
from verifier.core.prices import default_price, option, stated_price
from verifier.core.types import Missing, Where
from verifier.families.conventions import ENCODER
from verifier.measures.evidence import Evidence, Part, Subjects
from verifier.measures.eyes import EyesEvidence, SizeTried

PREPARED = "prepared"
KEPT = "pixels.kept"
SHOWN = 6


def shown_sizes(tried: tuple[SizeTried, ...]) -> str:
    """Sizes in words, at most six."""
    words = [f"{one.size[0]} x {one.size[1]}" for one in tried[:SHOWN]]
    return ", ".join(words) + (f" and {len(tried) - SHOWN} more" if len(tried) > SHOWN else "")


def _sizes_of(subjects: Subjects) -> tuple[str, ...]:
    return (PREPARED, *subjects.apps)


@need(Part.EYES, computed=True)
def tried(evidence: Evidence) -> tuple[EyesEvidence, bool] | Missing:
    """The sizes that the program was asked with, and whether it takes bytes."""
    if isinstance(evidence.eyes, Missing):
        return evidence.eyes
    return evidence.eyes, evidence.convention.pixels == "bytes"


@check(
    "pixels.sizes",
    step="use",
    needs=tried,
    cases=_sizes_of,
    overlap="the bench injects no fault into sizes; the program that is shipped refuses those of an app already",
)
def sizes(given: tuple[EyesEvidence, bool], case: str) -> Finding:
    """`vision_encoder` takes every size of picture that is fed to it: those of the gate's own preparation, and, of an app that is named with `--app`, those that
    the app feeds for usual shapes of pictures and for the golden ones. What apps that are not named would feed and the program refuses is in
    the table, and fails nothing."""
    eyes, takes_bytes = given
    if isinstance(eyes.tried, Missing):
        return unverified(eyes.tried.reason)
    if case == PREPARED:
        fed = eyes.prepared
        who = "the gate's own preparation (python -m verifier.image_util)"
        advice = "Is the shape of the picture dynamic in the export?"
    elif not takes_bytes:
        return unverified(
            "the program takes normalized pixels, and this app feeds bytes: what an app makes of them in between is not known here"
        )
    elif case in eyes.apps:
        fed, who = eyes.apps[case].sizes, f"{eyes.apps[case].title} (--app {case})"
        advice = (
            "An app that ships this program has to feed even sides, or a square, as verifier.image_util does; docs/app-pixels.md says "
            "what an export that takes every size needs."
        )
    else:
        return unverified(f"the picture path of {case} was not measured")
    if not fed:
        return unverified("no size was tried")
    if untried := eyes.untried(fed):
        return unverified(f"{len(untried)} sizes were not tried: {untried[:SHOWN]}")
    if refused := eyes.refused(fed):
        said = f"the program refuses {len(refused)} of {len(fed)} sizes that {who} feeds: {shown_sizes(refused)} ({refused[0].error}). {advice}"
        fields: Fields = {"measured": {"refused": len(refused)}, "allowed": {"refused": 0}}
        return failed(said, fields, where=Where(method=ENCODER), accuses="calls" if case == PREPARED else "")
    return passed(f"all {len(fed)} sizes are taken", measured={"refused": 0}, allowed={"refused": 0})


@need(Part.EYES, golden=True)
def looked(evidence: Evidence) -> tuple[EyesEvidence, Limit] | Missing:
    """The pictures by the apps' paths, and the budget of answers."""
    if isinstance(evidence.eyes, Missing):
        return evidence.eyes
    stated = evidence.prices.get(KEPT)
    budget = default_price(KEPT, evidence.recipe, tower=False) if stated is None else stated_price(KEPT, stated)
    return evidence.eyes, budget


def _named(subjects: Subjects) -> tuple[str, ...]:
    return subjects.apps


@check(
    "pixels.kept",
    step="use",
    needs=looked,
    cases=_named,
    limit=("price.pixels.kept", "pixels.compared"),
    overlap="it is made for an app that is named, which the bench does not do",
)
def kept(given: tuple[EyesEvidence, Limit], case: str) -> Finding:
    """With the pixels that a named app feeds, the fp32 model keeps the answers that it gives to its own preparation's, up to a budget
    (`--budget kept=0.8`). A picture that the program refuses, or that the app cannot feed, counts as lost."""
    eyes, budget = given
    if case not in eyes.apps:
        return unverified(f"the picture path of {case} was not measured")
    score = eyes.score(case)
    if not limit("pixels.compared").admits(score.asked):
        return unverified("no answer was asked for with these pixels")
    share, (low, high) = 1 - score.share, score.interval
    fields: Fields = {"measured": {"kept": round(share, 4)}, "allowed": {"kept": budget.value}}
    lost = [name for name, seen in eyes.apps[case].pictures.items() if not seen.same or eyes.refused((seen.size,))]
    said = (
        f"{score.lost} of {score.asked} answers are lost with the pixels of {eyes.apps[case].title} (95 % interval {low:.0%} to {high:.0%})"
        + (f", {score.aborts} of them because the program cannot be fed" if score.aborts else "")
        + (f", image tokens at {score.median_db:.1f} dB (median)" if score.median_db is not None else "")
    )
    if not budget.admits(share):
        names = ", ".join(lost[:SHOWN]) + (" …" if len(lost) > SHOWN else "")
        return failed(
            f"{said}: {names}. At most {1 - budget.value:.0%} may be. Prepare pictures in the app as the checkpoint is asked (docs/app-pixels.md), or accept it: {option(KEPT, math.floor(share * 100) / 100)}",
            fields,
            where=Where(method=ENCODER),
        )
    return passed(f"{said}; the budget is {1 - budget.value:.0%}", fields)


CHECKS = (sizes, kept)
