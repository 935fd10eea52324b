"""`greedy.*`: the answer that a user reads, token by token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verifier.checks.answers import images, no_answer, no_call_returned
from verifier.checks.bands import (
    Conversations,
    band_limit,
    band_of,
    conversations,
    decided,
    price_limit,
    take_conversations,
)
from verifier.checks.check import (
    IMAGE,
    PRICE,
    PUBLISHED_ANSWER,
    Fields,
    Finding,
    check,
    failed,
    fixed_cases,
    need,
    one_case,
    passed,
    per_image,
    unverified,
)
from verifier.checks.vision import SQNR, channel_center, compare_about
from verifier.core.compare import Array, Difference, Mismatch, compare, refusal
from verifier.core.limits import LIMITS, Limit
from verifier.core.prices import judged_by
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER
from verifier.measures.evidence import Case, Evidence, Part, Subjects, answered_freely

NOISE = "greedy.margin_noise"
OWN = "image"
"""The case of the user's own image."""
TIE = LIMITS["greedy.golden.tie"]
GOLDEN_LIMITS = (NOISE, "greedy.golden.tie", "greedy.rung.ties", "price.decided")


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


golden_answers = need(Part.QUANTIZED_TOKENS, golden=True, computed=True)(take_conversations)
"""The golden answers, with what the quantized model says of wrong tokens."""


@need(Part.QUANTIZED_TOKENS, computed=True)
def own_answer(evidence: Evidence) -> Conversations | Missing:
    """The answer to the user's own image."""
    if evidence.user_case is None:
        return Missing("no image was given", "verifier")
    return Conversations(evidence, {OWN: evidence.user_case})


@check(
    "greedy.golden",
    step="quantization",
    needs=golden_answers,
    cases=per_image,
    limit=(*GOLDEN_LIMITS, *judged_by(SQNR)),
    explained_by="layers.ranges",
    overlap="a wrong token has wrong logits; this one is what a user sees",
)
def golden(given: Conversations, name: str) -> Finding:
    """The greedy tokens equal the golden ones. A different token is accepted only where the top-2 margin of fp32 is smaller than the noise of a clean
    export; where nothing was calibrated, only where fp32 is undecided, or the eager model with the recipe's quantization gives it too. Teacher forcing
    keeps the tokens behind it comparable."""
    return _golden(given, given.cases[name])


@check(
    "greedy.image",
    step="quantization",
    needs=own_answer,
    cases=fixed_cases(OWN),
    limit=(*GOLDEN_LIMITS, *judged_by(SQNR)),
    explained_by="layers.ranges",
    having={IMAGE},
    overlap="it is made for the picture of a user alone, which the bench does not give",
)
def image(given: Conversations, name: str) -> Finding:
    """The program's caption of the user's own image equals the caption of the fp32 model."""
    return _golden(given, given.cases[name])


def _golden(given: Conversations, case: Case) -> Finding:
    evidence = given.evidence
    wanted = case.sample.golden
    silent = no_answer(evidence, case.logits)
    if silent is not None:
        return silent
    assert case.logits is not None
    recomputed = np.array(wanted.ids)
    unlike = _unlike_reference(case, case.logits)
    if unlike is not None:
        return unlike
    actual = case.logits.argmax(-1)
    wrong = np.flatnonzero(actual != recomputed)
    fields: Fields = {"measured": {"tokens": len(actual), "different": len(wrong)}}
    if len(wrong) == 0:
        return passed(f"{wanted.text!r}", fields)
    noise = _noise(evidence)
    spared = 0
    for at in beyond_noise(evidence, case):
        margin = wanted.margins[at]
        if (case is evidence.user_case or noise is None) and _within_recipe(evidence, case, at):
            spared += 1
            continue
        prefix = evidence.tokens.decode([int(i) for i in recomputed[:at]])
        pair = [evidence.tokens.decode([int(i)]) or f"<{int(i)}>" for i in (actual[at], recomputed[at])]
        position = case.sample.prompt.length(evidence.patches) + int(at) - 1
        return failed(
            f"the answer differs from the golden answer at token {at} (position {position}): got {pair[0]!r}, expected {pair[1]!r}, after {prefix!r}. "
            f"The fp32 margin there is {margin:.2f} logits{_moved(noise)}. {_cause(evidence, case, at)}",
            where=Where(method=DECODER, index=(position,)),
            measured={"margin": margin, **fields["measured"]},
            allowed={} if noise is None else {"margin": noise.value},
            accuses=PRICE if noise is None and case.quantized.get(at) == int(actual[at]) else "",
        )
    said = f"{len(wrong)} of {len(actual)} tokens differ where the fp32 margin is too small to decide"
    if spared and noise is None:
        said = f"{len(wrong)} of {len(actual)} tokens differ, {spared} of them where fp32 is sure and the recipe's quantization alone changes the token: see logits.distribution for this price"
    elif spared:
        said += f", {spared} of them where the recipe's quantization alone changes the token: this picture is harder to quantize than the golden ones"
    return passed(said, fields)


def _moved(noise: Limit | None) -> str:
    return "" if noise is None else f"; clean exports move it by at most {noise.value:.2f}"


def _unlike_reference(case: Case, logits: Array) -> Finding | None:
    """What keeps the answer from being held against the golden one: a reference that no longer gives it, or logits of another shape."""
    wanted, expected = case.sample.golden, case.expected.logits
    if refusal(expected) is not None or len(expected) != len(wanted.ids):
        return unverified("the fp32 reference gives an answer of another length: update the golden data")
    if logits.shape != expected.shape:
        said = f"the logits have shape {list(logits.shape)}, expected {list(expected.shape)}"
        return failed(said, where=Where(method=DECODER))
    parted = np.flatnonzero(expected.argmax(-1) != np.array(wanted.ids))
    if all(TIE.admits(wanted.margins[at]) for at in parted):
        return None
    return unverified(
        "the fp32 reference no longer gives the golden answer: golden data and checkpoint differ. Update the golden data: "
        'python -m verifier.golden update --model DIR --reason "why"'
    )


def _noise(evidence: Evidence) -> Limit | None:
    """How far a clean export moves a token against its rivals, in logits; None if it was never calibrated."""
    return band_limit(evidence, NOISE, "program")


def beyond_noise(evidence: Evidence, case: Case) -> tuple[int, ...]:
    """Places of an answer where the program favours another token than the golden one, and fp32 is surer of that than the noise of a clean
    export explains, or decided where that was never calibrated; none where the two cannot be compared."""
    noise, wanted, logits = _noise(evidence) or TIE, case.sample.golden, case.logits
    if logits is None or refusal(logits) is not None or logits.shape != case.expected.logits.shape:
        return ()
    if len(logits) != len(wanted.ids):
        return ()
    wrong = logits.argmax(-1) != np.array(wanted.ids)
    if _noise(evidence) is None:
        wrong &= decided(case.expected.logits)
    return tuple(int(at) for at in np.flatnonzero(wrong) if not noise.admits(wanted.margins[at]))


def looks_needed(evidence: Evidence) -> int | None:
    """At how many of these places of a golden answer the quantized model is asked: at one, to name the step that is to blame; at all where it is
    the judge, as nothing was calibrated."""
    return 1 if _noise(evidence) is not None else None


def _within_recipe(evidence: Evidence, case: Case, at: int) -> bool:
    """Whether the recipe's own noise explains a wrong token of a picture that no band was measured on: the image tokens are as
    near to fp32's as those of some golden image may be, or as the budget allows, and the eager model with the recipe's quantization, fed with them, says
    the same."""
    band = band_of(evidence, SQNR)
    if case.vision is None or case.logits is None:
        return False
    loosest = price_limit(evidence, SQNR, "") if isinstance(band, Missing) else band.loosest
    center = channel_center(evidence)
    tokens = compare_about(case, center if len(evidence.cases) > 1 else np.zeros_like(center))
    if isinstance(tokens, Mismatch) or not loosest.admits(tokens.sqnr_db):
        return False
    return case.quantized.get(at) == int(case.logits[at].argmax())


def _cause(evidence: Evidence, case: Case, at: int) -> str:
    """The step of the ladder that the wrong token comes from, by what the quantized rung says there."""
    token = case.quantized.get(at)
    if token is None or case.logits is None:
        return "See the first failing check above for the cause."
    if token == int(case.logits[at].argmax()):
        return "The eager model with the recipe's quantization, fed with these image tokens, gives the same token: step quantization, or the image tokens."
    word = evidence.tokens.decode([token]) or f"<{token}>"
    return f"The eager model with the recipe's quantization gives {word!r}: step lowering or kernel, see the first failing check above."


def _freely(subjects: Subjects) -> tuple[str, ...]:
    return answered_freely(subjects.images)


@check("greedy.free", step="mapping", needs=conversations, cases=_freely, limit="equal")
def free(given: Conversations, name: str) -> Finding:
    """Free-running greedy decoding picks the same tokens as the argmax of the teacher-forced logits, for three images."""
    evidence, case, logits = given.evidence, given.cases[name], given.evidence.runtime.free.get(name)
    wanted = case.sample.golden.ids
    for own_logits in (logits, case.logits):
        silent = no_answer(evidence, own_logits)
        if silent is not None:
            return silent
    assert logits is not None and case.logits is not None
    if case.logits.shape[0] != len(wanted) or logits.shape[1:] != case.logits.shape[1:]:
        said = f"the logits have shape {list(logits.shape)} free-running and {list(case.logits.shape)} teacher-forced, expected {len(wanted)} tokens"
        return failed(said, where=Where(method=DECODER))
    forced, own = case.logits.argmax(-1), logits.argmax(-1)
    # behind the first token that is not the golden one, the two have been fed differently
    parted = next((i for i, token in enumerate(forced) if int(token) != wanted[i]), len(wanted) - 1)
    wrong = np.flatnonzero(forced[: parted + 1] != own[: parted + 1])
    fields: Fields = {"measured": {"tokens": parted + 1, "different": len(wrong)}, "allowed": {"different": 0}}
    if len(wrong):
        at = int(wrong[0])
        position = case.sample.prompt.length(evidence.patches) + at - 1
        pair = [evidence.tokens.decode([int(i)]) or f"<{int(i)}>" for i in (own[at], forced[at])]
        said = f"free-running decoding gives {pair[0]!r} at token {at} (position {position}), teacher forcing gives {pair[1]!r}"
        hint = "The loop that feeds tokens back is at fault: temperature must be 0, input_pos must advance by 1, and the next token must be the argmax of the logits."
        return failed(f"{said}. {hint}", fields, where=Where(method=DECODER, index=(position,)))
    ends = evidence.tokens.ends
    if wanted[-1] in ends and parted == len(wanted) - 1 and int(own[-1]) not in ends:
        said = f"the answer does not end at token {len(wanted) - 1}, where the golden answer ends"
        return failed(f"{said}. Check get_eos_ids and the tokenizer.", fields, where=Where(method=DECODER))
    return passed(
        f"{parted + 1} tokens equal the argmax of the teacher-forced logits, {evidence.tokens.decode(own[: parted + 1].tolist())!r}",
        fields,
    )


@check(
    "greedy.history",
    step="kernel",
    needs=conversations,
    cases=one_case,
    limit="equal",
    overlap="what depends on the conversation before also shows in the cache's histories; this one asks as an app does",
)
def history(given: Conversations, _case: str) -> Finding:
    """The first conversation, repeated after all others, gives the same logits bit by bit."""
    evidence, first, again = given.evidence, given.first, given.evidence.runtime.again
    if first.logits is None or again is None:
        return no_call_returned(evidence)
    name = first.sample.golden.name
    made = compare(actual=again, expected=first.logits)
    if isinstance(made, Mismatch):
        said = f"the logits of {name} after all other conversations cannot be compared: {made.reason}"
        return failed(said, where=Where(method=DECODER, index=made.index))
    wrong = np.flatnonzero((again != first.logits).any(-1))
    fields: Fields = {"measured": {"different": len(wrong)}, "allowed": {"different": 0}}
    if len(wrong):
        position = first.sample.prompt.length(evidence.patches) + int(wrong[0]) - 1
        said = f"the logits of {name} differ from position {position} on when {len(evidence.cases) - 1} other conversations run before it"
        hint = "State of those conversations remains: in the KV-cache, in input_pos, or in a stored image embedding."
        where = Where(method=DECODER, index=(position,))
        return failed(f"{said}. {hint}", fields, where=where)
    said = (
        f"{len(again)} logits of {name} are the same when {len(evidence.cases) - 1} other conversations run before it"
    )
    return passed(said, fields)


@check(
    "greedy.limit",
    step="mapping",
    needs=conversations,
    cases=one_case,
    overlap="an answer up to the last position is also asked of the cache in chunks; this one asks as an app does",
)
def limit(given: Conversations, _case: str) -> Finding:
    """An answer that reaches the end of the KV-cache ends there: the last positions are used, and no call goes beyond them."""
    evidence = given.evidence
    made, last = evidence.runtime.full, evidence.program.max_seq_len
    where = Where(method=DECODER, index=(last - 1,))
    if made.logits is None:
        said = f"the answer stops before position {last - 1}: {evidence.runtime.message}"
        return failed(f"{said}. Check mask and cache length.", where=where, accuses="calls")
    fields: Fields = {
        "measured": {"tokens": len(made.logits), "position": made.position},
        "allowed": {"position": last},
    }
    if made.position > last or len(made.logits) != made.room:
        said = f"{len(made.logits)} tokens were generated up to position {made.position - 1}, but the cache has room for {made.room}"
        return failed(f"{said}. The loop must stop at max_seq_len.", fields, where=where)
    silent = no_answer(evidence, made.logits)
    if silent is not None:
        row = silent.where.index[0] if silent.where is not None and silent.where.index else made.room - 1
        return silent.but(where=replace(where, index=(last - made.room + row,)))
    return passed(
        f"the answer ends after {made.room} tokens, when the cache of {last} positions is full", fields, where=where
    )


@check(
    "greedy.expected",
    step="quantization",
    needs=own_answer,
    cases=fixed_cases(OWN),
    limit="equal",
    having={PUBLISHED_ANSWER},
    overlap="it is made for a published answer alone, and the bench's checkpoints have none",
)
def expected(given: Conversations, name: str) -> Finding:
    """The answer to the user's image begins like the published answer of this checkpoint."""
    evidence, wanted, case = given.evidence, given.evidence.expectation, given.cases[name]
    if wanted is None or case.logits is None:
        return unverified("there is no published answer for this checkpoint, no image, or no answer")
    silent = no_answer(evidence, case.logits)
    if silent is not None:
        return silent
    text = evidence.tokens.decode([int(i) for i in case.logits.argmax(-1)])
    if not text.startswith(wanted.begins_with):
        pairs = enumerate(zip(text, wanted.begins_with, strict=False))
        shared = next((i for i, (a, e) in pairs if a != e), min(len(text), len(wanted.begins_with)))
        said = f"the answer differs from the published answer at character {shared}: got {text[: shared + 40]!r}, expected {wanted.begins_with!r}"
        hint = f"Is this {wanted.image.split(';')[0]}? If so, see greedy.image for the first wrong token."
        return failed(f"{said}. {hint}", where=Where(method=DECODER))
    return passed(f"begins like the published answer: {wanted.begins_with!r}")


CHECKS = (golden, free, images, limit, history, image, expected)
