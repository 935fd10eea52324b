"""`greedy.*`: the answer that a user reads, token by token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verifier.checks.common import Check, band_of, per_image
from verifier.errors import GoldenError
from verifier.evidence import Case, Evidence, Subjects
from verifier.metrics import Array
from verifier.types import CheckResult, Where

NOISE = "greedy.margin_noise"


def margin_noise(actual: Array, expected: Array) -> float:
    """How far the runtime moved the expected winner against its best rival, the most over all positions, in logits."""
    winner = expected.argmax(-1)
    rows = np.arange(len(winner))

    def lead(logits: Array) -> Array:
        rivals = logits.copy()
        rivals[rows, winner] = -np.inf
        out: Array = logits[rows, winner] - rivals.max(-1)
        return out

    return float(np.abs(lead(actual) - lead(expected)).max())


def golden(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Greedy tokens equal the golden ones. Another token is accepted only where fp32's own top-2 margin is smaller than
    the noise of a clean export; teacher forcing keeps what follows comparable."""
    return [_golden(check, evidence, case) for case in evidence.cases]


def _golden(check: Check, evidence: Evidence, case: Case) -> CheckResult:
    wanted = case.sample.golden
    if case.logits is None:
        return check.failed(
            wanted.name, f"no answer: {evidence.runtime.conversations.message}", where=Where(method="text_decoder")
        )
    recomputed = case.expected.logits.argmax(-1)
    if tuple(int(i) for i in recomputed) != wanted.ids:
        return check.error(
            wanted.name,
            "the fp32 reference no longer gives the golden answer: golden data and checkpoint have parted; make golden data again",
        )
    if not np.isfinite(case.logits).all():
        return check.failed(
            wanted.name, "logits are not finite, so there is no answer", where=Where(method="text_decoder")
        )
    actual = case.logits.argmax(-1)
    wrong = np.flatnonzero(actual != recomputed)
    fields = {"measured": {"tokens": len(actual), "different": len(wrong)}}
    if len(wrong) == 0:
        return check.passed(wanted.name, f"{wanted.text!r}", **fields)
    band = band_of(evidence, NOISE)
    noise = None if isinstance(band, GoldenError) else band.allowed("program")
    if noise is None:
        return check.error(
            wanted.name, "a token differs and the noise of a clean export is unknown: calibrate first", **fields
        )
    for at in wrong:
        margin = wanted.margins[at]
        if margin > noise:
            prefix = evidence.tokenizer.decode([int(i) for i in recomputed[:at]])
            pair = [evidence.tokenizer.decode([int(i)]) or f"<{int(i)}>" for i in (actual[at], recomputed[at])]
            position = case.sample.prompt.length(evidence.patches) + int(at) - 1
            return check.failed(
                wanted.name,
                f"the answer parts from the golden one at token {at} (position {position}): {pair[0]!r} for {pair[1]!r} after {prefix!r}; "
                f"fp32 is sure of it by {margin:.2f} logits, noise allows {noise:.2f}. See the first failing check above for the cause.",
                where=Where(method="text_decoder", index=(position,)),
                measured={"margin": margin} | fields["measured"],
                allowed={"margin": noise},
            )
    return check.passed(
        wanted.name, f"{len(wrong)} of {len(actual)} tokens differ where fp32 itself is undecided", **fields
    )


def user_image(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The caption of the user's own image, in fp32 and by the program."""
    if evidence.user_case is None:
        return [check.error("image", "no image was given")]
    return [replace(_golden(check, evidence, evidence.user_case), case="image")]


def _user_cases(_subjects: Subjects) -> tuple[str, ...]:
    return ("image",)


USER_IMAGE = Check("greedy.image", "quantization", _user_cases, user_image)
CHECKS = (Check("greedy.golden", "quantization", per_image, golden), USER_IMAGE)
