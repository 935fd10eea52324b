"""`greedy.*`: the answer that a user reads, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from verifier.checks.common import Check, band_of, fixed_cases, one_case, per_image
from verifier.checks.vision import SQNR, channel_center, compare_about
from verifier.core.compare import Array, Difference, Mismatch, compare, refusal
from verifier.core.limits import LIMITS
from verifier.errors import GoldenError
from verifier.evidence import Case, Evidence, Subjects, answered_freely
from verifier.ladder.divergence import quantized_token
from verifier.ladder.quantized import build_quantized_decoder
from verifier.model.ending import end_ids
from verifier.types import CheckResult, Where

NOISE = "greedy.margin_noise"
TIE = LIMITS["greedy.golden.tie"]


def margin_noise(made: Difference) -> float:
    """How far the runtime moved the expected winner against its best rival, the most over all positions, in logits."""
    winner = made.expected.argmax(-1)
    rows = np.arange(len(winner))

    def lead(logits: Array) -> Array:
        rivals = logits.copy()
        rivals[rows, winner] = -np.inf
        out: Array = logits[rows, winner] - rivals.max(-1)
        return out

    return float(np.abs(lead(made.actual) - lead(made.expected)).max())


def _silent(check: Check, evidence: Evidence, case: str) -> CheckResult:
    said = f"no answer: {evidence.runtime.conversations.message}"
    return check.failed(case, said, where=Where(method="text_decoder"), accuses="calls")


def _no_answer(check: Check, evidence: Evidence, case: str, logits: Array | None) -> CheckResult | None:
    """A failure if there are no logits to choose tokens from, or if they are not numbers: the largest of them is no answer."""
    if logits is None:
        return _silent(check, evidence, case)
    reason = refusal(logits)
    if reason is not None:
        said = f"the logits are not finite, so there is no answer: {reason.reason}"
        return check.failed(case, said, where=Where(method="text_decoder", index=reason.index))
    vocabulary = evidence.checkpoint.geometry.text.vocabulary
    if logits.ndim != 2 or logits.shape[1] != vocabulary:
        said = f"the logits have shape {list(logits.shape)}, expected [tokens, {vocabulary}]"
        return check.failed(case, said, where=Where(method="text_decoder"))
    return None


def golden(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Greedy tokens equal the golden ones. Another token is accepted only where fp32's own top-2 margin is smaller than
    the noise of a clean export; teacher forcing keeps what follows comparable."""
    quantized = _quantized(evidence)
    return [_golden(check, evidence, case, quantized) for case in evidence.cases]


def _quantized(evidence: Evidence) -> Callable[[], Any]:
    """The quantized rung's decoder, made when the first wrong token asks for it, and once."""
    return cache(lambda: build_quantized_decoder(evidence.checkpoint, evidence.recipe))


def _golden(check: Check, evidence: Evidence, case: Case, quantized: Callable[[], Any]) -> CheckResult:
    wanted = case.sample.golden
    silent = _no_answer(check, evidence, wanted.name, case.logits)
    if silent is not None:
        return silent
    assert case.logits is not None
    recomputed = np.array(wanted.ids)
    reference = refusal(case.expected.logits)
    if reference is not None or len(case.expected.logits) != len(recomputed):
        return check.error(wanted.name, "the fp32 reference gives no answer of this length: make golden data again")
    if case.logits.shape != case.expected.logits.shape:
        said = f"the logits have shape {list(case.logits.shape)}, expected {list(case.expected.logits.shape)}"
        return check.failed(wanted.name, said, where=Where(method="text_decoder"))
    parted = np.flatnonzero(case.expected.logits.argmax(-1) != recomputed)
    if not all(TIE.admits(wanted.margins[at]) for at in parted):
        command = 'python -m verifier.golden update --model DIR --reason "why"'
        return check.error(
            wanted.name,
            "the fp32 reference no longer gives the golden answer: golden data and checkpoint have parted; "
            f"make golden data again: {command}",
        )
    actual = case.logits.argmax(-1)
    wrong = np.flatnonzero(actual != recomputed)
    fields = {"measured": {"tokens": len(actual), "different": len(wrong)}}
    if len(wrong) == 0:
        return check.passed(wanted.name, f"{wanted.text!r}", **fields)
    band = band_of(evidence, NOISE)
    noise = None if isinstance(band, GoldenError) else band.limit("program")
    if noise is None:
        return check.error(
            wanted.name, "a token differs and the noise of a clean export is unknown: calibrate first", **fields
        )
    spared = 0
    for at in wrong:
        margin = wanted.margins[at]
        if noise.admits(margin):
            continue
        if case is evidence.user_case and _within_recipe(evidence, case, quantized, int(at)):
            spared += 1
            continue
        prefix = evidence.tokenizer.decode([int(i) for i in recomputed[:at]])
        pair = [evidence.tokenizer.decode([int(i)]) or f"<{int(i)}>" for i in (actual[at], recomputed[at])]
        position = case.sample.prompt.length(evidence.patches) + int(at) - 1
        return check.failed(
            wanted.name,
            f"the answer parts from the golden one at token {at} (position {position}): {pair[0]!r} for {pair[1]!r} after {prefix!r}; "
            f"fp32 is sure of it by {margin:.2f} logits, noise allows {noise.value:.2f}. {_cause(evidence, case, quantized, int(at), int(actual[at]))}",
            where=Where(method="text_decoder", index=(position,)),
            measured={"margin": margin} | fields["measured"],
            allowed={"margin": noise.value},
        )
    said = f"{len(wrong)} of {len(actual)} tokens differ where fp32 itself is undecided"
    if spared:
        said += f", {spared} of them where the recipe's quantization decides: this picture is harder for it than the golden ones"
    return check.passed(wanted.name, said, **fields)


def _within_recipe(evidence: Evidence, case: Case, quantized: Callable[[], Any], at: int) -> bool:
    """Whether the recipe's own noise explains a wrong token of a picture that no band was measured on: the image tokens are as
    near to fp32's as those of some golden image may be, and the eager model with the recipe's quantization, fed with them, says
    the same."""
    band = band_of(evidence, SQNR)
    if isinstance(band, GoldenError) or case.vision is None or case.logits is None:
        return False
    tokens = compare_about(case, channel_center(evidence))
    if isinstance(tokens, Mismatch) or not band.loosest.admits(tokens.sqnr_db):
        return False
    said = int(case.logits[at].argmax())
    return quantized_token(quantized(), evidence.definition, case.sample, case.vision, at) == said


def _cause(evidence: Evidence, case: Case, quantized: Callable[[], Any], at: int, said: int) -> str:
    """The step of the ladder that the wrong token comes from, by what the quantized rung says there."""
    if case.vision is None:
        return "See the first failing check above for the cause."
    token = quantized_token(quantized(), evidence.definition, case.sample, case.vision, at)
    if token == said:
        return "The eager model with the recipe's quantization, fed with these image tokens, says the same: step quantization, or the image tokens."
    word = evidence.tokenizer.decode([token]) or f"<{token}>"
    return f"The eager model with the recipe's quantization says {word!r}: step lowering or kernel, see the first failing check above."


def user_image(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The caption of the user's own image, in fp32 and by the program."""
    if evidence.user_case is None:
        return [check.error("image", "no image was given")]
    return [replace(_golden(check, evidence, evidence.user_case, _quantized(evidence)), case="image")]


def free(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Left to itself the program says what its own logits favour: the answers of three images, fed back token by token."""
    cases = {case.sample.golden.name: case for case in evidence.cases}
    return [_free(check, evidence, cases[name], logits) for name, logits in evidence.runtime.free.items()]


def _free(check: Check, evidence: Evidence, case: Case, logits: Array | None) -> CheckResult:
    name, wanted = case.sample.golden.name, case.sample.golden.ids
    for own_logits in (logits, case.logits):
        silent = _no_answer(check, evidence, name, own_logits)
        if silent is not None:
            return silent
    assert logits is not None and case.logits is not None
    if case.logits.shape[0] != len(wanted) or logits.shape[1:] != case.logits.shape[1:]:
        said = f"logits {list(logits.shape)} and {list(case.logits.shape)} are not those of {len(wanted)} tokens"
        return check.failed(name, said, where=Where(method="text_decoder"))
    forced, own = case.logits.argmax(-1), logits.argmax(-1)
    # behind the first token that is not the golden one, the two have been fed differently
    parted = next((i for i, token in enumerate(forced) if int(token) != wanted[i]), len(wanted) - 1)
    wrong = np.flatnonzero(forced[: parted + 1] != own[: parted + 1])
    fields = {"measured": {"tokens": parted + 1, "different": len(wrong)}, "allowed": {"different": 0}}
    if len(wrong):
        at = int(wrong[0])
        position = case.sample.prompt.length(evidence.patches) + at - 1
        pair = [evidence.tokenizer.decode([int(i)]) or f"<{int(i)}>" for i in (own[at], forced[at])]
        said = f"left to itself the program says {pair[0]!r} at token {at} (position {position}), fed with the same tokens it says {pair[1]!r}"
        hint = "The loop that feeds tokens back is at fault: temperature must be 0, input_pos advance by 1, the token be the favoured one."
        return check.failed(name, f"{said}. {hint}", where=Where(method="text_decoder", index=(position,)), **fields)
    checkpoint = evidence.checkpoint
    ends = end_ids(checkpoint.directory, checkpoint.config, tokenizer_id=evidence.tokenizer.eos_id)
    if wanted[-1] in ends and parted == len(wanted) - 1 and int(own[-1]) not in ends:
        said = f"the answer does not end where it should, at token {len(wanted) - 1}"
        return check.failed(
            name, f"{said}. Check get_eos_ids and the tokenizer.", where=Where(method="text_decoder"), **fields
        )
    return check.passed(
        name,
        f"{parted + 1} tokens as its logits favour, {evidence.tokenizer.decode(own[: parted + 1].tolist())!r}",
        **fields,
    )


def images(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Left to itself the program answers another image otherwise, where the reference does: it looks at this very image."""
    wanted = {case.sample.golden.name: case.sample.golden for case in evidence.cases}
    own: dict[str, list[int]] = {}
    for name, logits in evidence.runtime.free.items():
        silent = _no_answer(check, evidence, "program", logits)
        if silent is not None:
            return [silent]
        assert logits is not None
        own[name] = [int(i) for i in logits.argmax(-1)]
    pairs = [(one, two) for one, two in combinations(own, 2) if wanted[one].ids != wanted[two].ids]
    if not pairs:
        return [
            check.error(
                "program", "the golden answers to the images that are answered freely are all the same: add others"
            )
        ]
    for one, two in pairs:
        shorter = min(len(own[one]), len(own[two]))
        if own[one][:shorter] == own[two][:shorter]:
            said = f"the answers to {two} and {one} are the same, {evidence.tokenizer.decode(own[two])!r}, though the images are not"
            hint = "The image of an earlier request is used again, or none is: check that vision_encoder runs for each."
            return [check.failed("program", f"{said}. {hint}", where=Where(method="vision_encoder"))]
    return [check.passed("program", f"{len(own)} images, different answers", measured={"pairs": len(pairs)})]


def history(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The first conversation once more, behind all others: the same logits, bit by bit."""
    first = evidence.cases[0] if evidence.cases else None
    again = evidence.runtime.again
    if first is None or first.logits is None or again is None:
        return [_silent(check, evidence, "program")]
    name = first.sample.golden.name
    made = compare(actual=again, expected=first.logits)
    if isinstance(made, Mismatch):
        said = f"the logits of {name} behind all other conversations cannot be compared: {made.reason}"
        return [check.failed("program", said, where=Where(method="text_decoder", index=made.index))]
    wrong = np.flatnonzero((again != first.logits).any(-1))
    fields = {"measured": {"different": len(wrong)}, "allowed": {"different": 0}}
    if len(wrong):
        position = first.sample.prompt.length(evidence.patches) + int(wrong[0]) - 1
        said = f"behind {len(evidence.cases) - 1} other conversations, {name} gets other logits from position {position} on"
        hint = "Something of them is left: in the KV-cache, in input_pos, or in a stored image embedding."
        where = Where(method="text_decoder", index=(position,))
        return [check.failed("program", f"{said}. {hint}", where=where, **fields)]
    said = f"{len(again)} logits of {name} are the same behind {len(evidence.cases) - 1} other conversations"
    return [check.passed("program", said, **fields)]


def limit(check: Check, evidence: Evidence) -> list[CheckResult]:
    """An answer that reaches the end of the cache ends there: the last positions are used, and no call goes beyond."""
    made, last = evidence.runtime.full, evidence.artifact.max_seq_len
    where = Where(method="text_decoder", index=(last - 1,))
    if made.logits is None:
        said = f"the answer stops before position {last - 1}: {evidence.runtime.conversations.message}"
        return [check.failed("program", f"{said}. Check mask and cache length.", where=where, accuses="calls")]
    fields = {"measured": {"tokens": len(made.logits), "position": made.position}, "allowed": {"position": last}}
    if made.position > last or len(made.logits) != made.room:
        said = f"{len(made.logits)} tokens were answered up to position {made.position - 1}, the program has room for {made.room}"
        return [check.failed("program", f"{said}. The loop must stop at max_seq_len.", where=where, **fields)]
    silent = _no_answer(check, evidence, "program", made.logits)
    if silent is not None:
        row = silent.where.index[0] if silent.where is not None and silent.where.index else made.room - 1
        return [replace(silent, where=replace(where, index=(last - made.room + row,)))]
    return [
        check.passed(
            "program",
            f"{made.room} tokens, then the cache of {last} is full and the answer ends",
            where=where,
            **fields,
        )
    ]


def _freely(subjects: Subjects) -> tuple[str, ...]:
    return answered_freely(subjects.images)


def expected(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The answer to the user's image begins as the published one of this checkpoint does."""
    wanted, case = evidence.expectation, evidence.user_case
    if wanted is None or case is None or case.logits is None:
        return [check.error("image", "there is no published answer for this checkpoint, no image, or no answer")]
    silent = _no_answer(check, evidence, "image", case.logits)
    if silent is not None:
        return [silent]
    text = evidence.tokenizer.decode([int(i) for i in case.logits.argmax(-1)])
    if not text.startswith(wanted.begins_with):
        pairs = enumerate(zip(text, wanted.begins_with, strict=False))
        shared = next((i for i, (a, e) in pairs if a != e), min(len(text), len(wanted.begins_with)))
        said = f"the answer parts from the published one at character {shared}: {text[: shared + 40]!r}, published is {wanted.begins_with!r}"
        hint = f"Is this {wanted.image.split(';')[0]}? If so, see greedy.image for the first wrong token."
        return [check.failed("image", f"{said}. {hint}", where=Where(method="text_decoder"))]
    return [check.passed("image", f"as published: {wanted.begins_with!r}")]


EXPECTED = Check("greedy.expected", "quantization", fixed_cases("image"), expected)
USER_IMAGE = Check("greedy.image", "quantization", fixed_cases("image"), user_image)
CHECKS = (
    Check("greedy.golden", "quantization", per_image, golden),
    Check("greedy.free", "mapping", _freely, free),
    Check("greedy.images", "mapping", one_case, images),
    Check("greedy.limit", "mapping", one_case, limit),
    Check("greedy.history", "kernel", one_case, history),
    USER_IMAGE,
    EXPECTED,
)
