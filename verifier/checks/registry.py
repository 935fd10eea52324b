"""All checks, in the order in which blame is sought: the first failing one is nearest to the cause."""

from __future__ import annotations

from fnmatch import fnmatchcase

from verifier.checks import (
    blocks,
    budget,
    cache_rows,
    device,
    embedding,
    eyes,
    greedy,
    kvcache,
    layers,
    logits,
    mapping,
    preprocess,
    splice,
    structure,
    threads,
    tokenizer,
    use,
    vision,
    weights,
)
from verifier.checks.check import ALL_IMAGES, Check
from verifier.core.errors import UsageError

CHECKS: tuple[Check, ...] = (
    *structure.CHECKS,
    *mapping.CHECKS,
    *preprocess.CHECKS,
    *splice.CHECKS,
    *tokenizer.CHECKS,
    *weights.CHECKS,
    device.instructions,  # a machine that computes wrongly explains everything behind it
    *layers.CHECKS,
    *blocks.CHECKS,
    layers.ranges,
    blocks.price,
    *device.CHECKS,
    structure.census,  # behind what can say where the graph is another one
    structure.manifest,  # behind what can say which bytes changed
    *cache_rows.CHECKS,  # what each row depends on, before what comes out
    *kvcache.CHECKS,
    *threads.CHECKS,
    *embedding.CHECKS,
    *vision.CHECKS,
    blocks.profile,
    *logits.CHECKS,
    *greedy.CHECKS,
    *use.CHECKS,  # an app asks a program that computes rightly
    *eyes.CHECKS,  # the bytes are right by now: is the app?
    *budget.CHECKS,  # what is not LLaVA needs no budget
)


def select(patterns: tuple[str, ...], having: frozenset[str] = frozenset({ALL_IMAGES})) -> tuple[Check, ...]:
    """Checks whose id matches one of the globs; all for none. Raises `UsageError` if a glob matches nothing.

    Those that are made only for requests with something special (`Check.having`) are among them if the request has it.
    """
    for pattern in patterns:
        if not any(fnmatchcase(check.id, pattern) for check in CHECKS):
            raise UsageError(
                "no check matches",
                got=pattern,
                expected=", ".join(check.id for check in CHECKS),
                fix="give --checks a glob such as 'logits.*'",
            )
    offered = tuple(check for check in CHECKS if check.having <= having)
    return tuple(c for c in offered if not patterns or any(fnmatchcase(c.id, pattern) for pattern in patterns))
