"""`embedding.*`: the token embedding over the whole vocabulary."""

from __future__ import annotations

import numpy as np

from verifier.checks.common import Check, one_case
from verifier.evidence import Evidence
from verifier.metrics import comparable, sqnr_db
from verifier.types import EMBEDDING_GROUP, CheckResult, Where

ALLOWED_STEPS = 0.51
"""Physical, not fitted: rounding to the nearest of 2^bits levels is off by half a step; 1 % for fp32 arithmetic. One
step is the group's largest magnitude over 2^(bits-1) - 0.5. Scales found by HQQ may clip, so a whole step is theirs."""
HQQ_STEPS = 1.01


def tokens(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every embedding of every token id lies within half a quantization step of the checkpoint's."""
    actual = evidence.runtime.vocabulary
    expected = evidence.definition.embedding.numpy()
    where = Where(method="token_embedding")
    if actual is None:
        return [
            check.failed(
                "program", f"token_embedding did not return: {evidence.runtime.conversations.message}", where=where
            )
        ]
    mismatch = comparable(actual=actual, expected=expected)
    if mismatch:
        return [
            check.failed(
                "program", f"embeddings: {mismatch.reason}", where=Where("token_embedding", index=mismatch.index)
            )
        ]
    recipe = evidence.manifest.recipe if evidence.manifest else None
    bits = recipe.embedding_bits if recipe else 8
    steps_allowed = HQQ_STEPS if recipe and recipe.quantizer == "hqq" else ALLOWED_STEPS
    difference = np.abs(actual - expected)
    if bits == 32:
        steps, unit = difference, "absolute"
        steps_allowed = 0.0
    else:
        groups = expected.reshape(len(expected), -1, EMBEDDING_GROUP)
        step = np.abs(groups).max(-1, keepdims=True) / (2 ** (bits - 1) - 0.5)
        steps, unit = (difference.reshape(groups.shape) / np.maximum(step, 1e-12)).reshape(difference.shape), "steps"
    flat = int(steps.argmax())
    row, column = divmod(flat, steps.shape[1])
    value = float(steps[row, column])
    quality = sqnr_db(actual=actual, expected=expected)
    fields = {"measured": {"worst_steps": value, "sqnr_db": quality}, "allowed": {"worst_steps": steps_allowed}}
    where = Where(method="token_embedding", index=(row, column))
    if not value <= steps_allowed:
        count = int((steps > steps_allowed).any(1).sum())
        return [
            check.failed(
                "program",
                f"{count} of {len(expected)} token embeddings are off; worst is token {row}, column {column}: {value:.2f} {unit}, allowed {steps_allowed}. "
                "Check that these embedding weights and scales are this checkpoint's.",
                where=where,
                **fields,
            )
        ]
    return [
        check.passed(
            "program", f"{len(expected)} tokens, worst {value:.3f} {unit}, {quality:.1f} dB", where=where, **fields
        )
    ]


CHECKS = (Check("embedding.tokens", "quantization", one_case, tokens),)
