"""All checks, in the order in which blame is sought: the first failing one is nearest to the cause."""

from __future__ import annotations

from fnmatch import fnmatchcase

from verifier.checks import (
    budget,
    cache_rows,
    device,
    embedding,
    greedy,
    kvcache,
    layers,
    logits,
    mapping,
    memory,
    preprocess,
    splice,
    structure,
    threads,
    tokenizer,
    vision,
    weights,
)
from verifier.checks.common import Check, per_image
from verifier.errors import UsageError

CHECKS: tuple[Check, ...] = (
    *structure.CHECKS,
    *memory.CHECKS,
    *mapping.CHECKS,
    *preprocess.CHECKS,
    *splice.CHECKS,
    *tokenizer.CHECKS,
    *weights.CHECKS,
    *device.CHECKS[:1],  # a machine that computes wrongly explains everything behind it
    *layers.CHECKS,
    *device.CHECKS[1:],
    structure.CENSUS,  # behind what can say where the graph is another one
    structure.MANIFEST,  # behind what can say which bytes changed
    *cache_rows.CHECKS,  # what each row depends on, before what comes out
    *kvcache.CHECKS,
    *threads.CHECKS,
    *embedding.CHECKS,
    *vision.CHECKS,
    layers.PROFILE_CHECK,
    *logits.CHECKS,
    *greedy.CHECKS,
    *budget.CHECKS,  # what is not LLaVA needs no budget
)


OF_ALL_IMAGES = frozenset(
    {"vision.embedding", "vision.channels", "logits.channels", "logits.distribution", "greedy.images"}
)
"""Their bands are those of all golden images together, or about what all have in common."""


OF_GOLDEN_ANSWERS = frozenset(
    {
        "splice.capacity",
        "vision.channels",
        "logits.channels",
        "logits.distribution",
        "greedy.free",
        "greedy.images",
        "greedy.limit",
        "greedy.history",
        "tokenizer.answers",
    }
)
"""Checks of the whole program that look at golden conversations; those of every golden image do, too."""


def needs_golden(check: Check) -> bool:
    """Whether a check cannot be made of a checkpoint without golden data."""
    return check.cases is per_image or check.id in OF_GOLDEN_ANSWERS


def select(
    patterns: tuple[str, ...],
    *,
    with_image: bool = False,
    with_expectation: bool = False,
    with_device: bool = False,
    with_all_images: bool = True,
    budgeted: frozenset[str] = frozenset(),
) -> tuple[Check, ...]:
    """Checks whose id matches one of the globs; all for none. Raises `UsageError` if a glob matches nothing.

    The check of the user's own image is among them only if there is one, that of a published answer only if there is one
    for this checkpoint too, those of a device only if the program runs on another architecture than this machine's, those of
    all golden images together only if no images were chosen, those of a budget only for the figures `budgeted`.
    """
    for pattern in patterns:
        if not any(fnmatchcase(check.id, pattern) for check in CHECKS):
            raise UsageError(
                "no check matches",
                got=pattern,
                expected=", ".join(check.id for check in CHECKS),
                fix="give --checks a glob such as 'logits.*'",
            )
    left_out = [] if with_image else [greedy.USER_IMAGE, preprocess.USER_IMAGE]
    left_out += [] if with_image and with_expectation else [greedy.EXPECTED]
    left_out += [] if with_device else device.CHECKS
    left_out += [check for name, check in budget.CHECKS_OF.items() if name not in budgeted]
    left_out += [] if with_all_images else [check for check in CHECKS if check.id in OF_ALL_IMAGES]
    offered = tuple(check for check in CHECKS if check not in left_out)
    return tuple(c for c in offered if not patterns or any(fnmatchcase(c.id, pattern) for pattern in patterns))
