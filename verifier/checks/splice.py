"""`splice.*`: what is fed to the decoder, token by token and position by position, judged from the calls that were made."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.checks.common import Check, fixed_cases, one_case, per_image
from verifier.core.limits import stated
from verifier.driver import Script, splice
from verifier.errors import CheckpointError, UsageError
from verifier.evidence import Case, Evidence
from verifier.model.chat_template import find_template, render
from verifier.model.prompt import (
    BEFORE_IMAGE,
    DEFAULT_QUESTION,
    SEED_CUE,
    Segment,
    Turn,
    caption_parts,
    dialogue_parts,
    dialogue_segments,
)
from verifier.model.tokenizer import Mark, Part, described
from verifier.runner.protocol import ArgmaxOf, Call, OutputOf
from verifier.types import CheckResult, Where


def fed_ids(calls: tuple[Call, ...]) -> list[int]:
    """Ids of all token_embedding calls, in order."""
    return [int(i) for call in calls if call.method == "token_embedding" for i in _array(call.inputs[0]).reshape(-1)]


def _array(value: Any) -> Any:
    if isinstance(value, (OutputOf, ArgmaxOf)):
        raise TypeError("an id input is an array")
    return value


def _lengths(evidence: Evidence, calls: tuple[Call, ...], offset: int) -> list[tuple[int, int]]:
    """(start position, tokens) of every text_decoder call."""
    spans = []
    for call in calls:
        if call.method != "text_decoder":
            continue
        source = call.inputs[0]
        if isinstance(source, OutputOf):
            producer = calls[source.call - offset]
            tokens = evidence.patches if producer.method == "vision_encoder" else _array(producer.inputs[0]).size
        else:
            tokens = _array(source).shape[1]
        spans.append((int(_array(call.inputs[1])[0]), int(tokens)))
    return spans


def _expected(evidence: Evidence, parts: tuple[Part, ...]) -> tuple[list[int], list[int]]:
    """Ids of a text by transformers, and by the second encoder, each with BOS as the tokenizer puts it. A text that spells a special token
    is no text to transformers: then the second encoder speaks for both. Raises `CheckpointError` if transformers cannot load the files."""
    tokenizer = evidence.tokenizer
    front = [tokenizer.bos_id] if tokenizer.adds_bos else []
    second = [*front, *tokenizer.second_ids(parts)]
    if not all(tokenizer.is_plain(part) for part in parts if isinstance(part, str)):
        return second, second
    return tokenizer.reference.encode(tokenizer.spelled(parts)), second


def _against(
    check: Check, evidence: Evidence, case: str, actual: list[int], parts: tuple[Part, ...]
) -> CheckResult | None:
    """What is wrong with ids, None if they are those of both references."""
    try:
        expected, second = _expected(evidence, parts)
    except CheckpointError as error:
        return check.error(case, error.one_line)
    other = evidence.tokenizer.second.name
    if expected != second:
        at = _first_difference(expected, second)
        said = f"token {at} is {expected[at : at + 1]} by transformers and {second[at : at + 1]} by {other}"
        return check.error(case, f"the references make different ids of this prompt: {said}")
    if actual == expected:
        return None
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {actual[at : at + 1]}, Hugging Face has {expected[at : at + 1]}"
    rule = described(evidence.tokenizer.rule.as_json())
    hint = f"Check template spacing, BOS, and what stands behind a special token: this checkpoint has {rule}."
    message = f"{said} ({len(actual)} tokens against {len(expected)}). {hint}"
    return check.failed(case, message, where=Where(method="token_embedding", index=(at,)))


def _first_difference(one: list[int], two: list[int]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def _bos(check: Check, evidence: Evidence, case: str, ids: list[int]) -> CheckResult | None:
    """A failure if BOS stands anywhere but where the tokenizer puts it: once, at 0, or nowhere."""
    at = [number for number, token in enumerate(ids) if token == evidence.tokenizer.bos_id]
    wanted = [0] if evidence.tokenizer.adds_bos else []
    if at == wanted:
        return None
    said = f"BOS stands at {at} of the prompt, expected {'once, at 0' if wanted else 'nowhere'}"
    return check.failed(case, f"{said}. Encode only the first segment with BOS.", where=Where(method="token_embedding"))


def tokens(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The ids around the image are Hugging Face's for the same conversation: BOS at the start if at all, and 576 image slots."""
    return [_tokens(check, evidence, case) for case in evidence.cases]


def _tokens(check: Check, evidence: Evidence, case: Case) -> CheckResult:
    name, prompt, tokenizer = case.sample.golden.name, case.sample.prompt, evidence.tokenizer
    ids = fed_ids(case.calls)
    answer = list(case.sample.golden.ids[:-1])
    fed = ids[: len(ids) - len(answer)] if answer else ids
    once = [*prompt.before, *prompt.after]
    if fed == 2 * once:
        said = f"the whole prompt goes in twice, the second time as token {len(once)}: positions and cache are those of another conversation"
        return check.failed(name, f"{said}. Prefill once.", where=Where(method="token_embedding", index=(len(once),)))
    wrong = _bos(check, evidence, name, fed)
    if wrong is not None:
        return wrong
    actual = [*prompt.before, tokenizer.image_id, *fed[len(prompt.before) :]]
    if not case.sample.golden.question:
        return _seed_tokens(check, evidence, name, actual)
    wrong = _against(check, evidence, name, actual, caption_parts(case.sample.golden.question))
    said = "one BOS" if tokenizer.adds_bos else "no BOS, as the tokenizer has it"
    return wrong or check.passed(name, f"{len(actual) - 1} text tokens as Hugging Face's, {said}")


def _seed_tokens(check: Check, evidence: Evidence, name: str, actual: list[int]) -> CheckResult:
    """The seed's prompt has no Hugging Face spelling: its cue is a text of its own, behind the image."""
    tokenizer = evidence.tokenizer
    front = [tokenizer.bos_id] if tokenizer.adds_bos else []
    expected = [*front, *tokenizer.second_ids((BEFORE_IMAGE, Mark.IMAGE)), *tokenizer.second_ids((SEED_CUE,))]
    if actual == expected:
        return check.passed(name, f"BOS where it belongs; ids of the seed's prompt as by {tokenizer.second.name}")
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {actual[at : at + 1]}, {tokenizer.second.name} has {expected[at : at + 1]}"
    return check.failed(name, f"{said}. Check template spacing.", where=Where(method="token_embedding", index=(at,)))


PROMPTS: dict[str, tuple[Turn, ...]] = {
    "empty": (Turn(""),),
    "unicode": (Turn("Was ist das? 日本語 🙂 é\u0301 \u200d"),),
    "many newlines": (Turn("\n\n\nWhat\n\n\nis it?\n\n\n"),),
    "literal <image>": (Turn("What does <image> or </s> or <s> mean?"),),
    "text only": (Turn("Hello there, who are you?", images=0),),
    "two turns": (Turn("What is it?", answer="A cat."), Turn("And why?", images=0)),
    "two images": (Turn("Compare the two.", images=2),),
    "to the limit": (),
}
"""Prompts beside the golden ones. The last one is made as long as the program holds."""
LONG = "What is it? "


def prompts(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Unusual prompts: ids as Hugging Face's, one BOS, each image in its own slots, no gap; what is too long is refused."""
    return [_prompt(check, evidence, case, turns or _longest(evidence)) for case, turns in PROMPTS.items()]


def _tokens_of(evidence: Evidence, segments: tuple[Segment, ...]) -> int:
    return sum(evidence.patches if segment is None else len(segment) for segment in segments)


def _longest(evidence: Evidence) -> tuple[Turn, ...]:
    """One question of as many words as the program holds, to the token if the tokenizer allows it."""
    limit = evidence.artifact.max_seq_len

    def fits(text: str) -> bool:
        return _tokens_of(evidence, dialogue_segments(evidence.tokenizer, (Turn(text),))) <= limit

    words = next(count for count in range(limit) if not fits(LONG * (count + 1)))
    text = LONG * words
    while fits(text + "a "):
        text += "a "
    return (Turn(text),)


def _prompt(check: Check, evidence: Evidence, case: str, turns: tuple[Turn, ...]) -> CheckResult:
    tokenizer = evidence.tokenizer
    segments = dialogue_segments(tokenizer, turns)
    count, limit = sum(turn.images for turn in turns), evidence.artifact.max_seq_len
    actual = [token for segment in segments for token in ((tokenizer.image_id,) if segment is None else segment)]
    if case.startswith("literal"):
        asked = tokenizer.decode([i for segment in segments if segment is not None for i in segment])
        if actual.count(tokenizer.image_id) != count or tokenizer.eos_id in actual or turns[0].question not in asked:
            said = f"the user's text {turns[0].question!r} is fed as {asked[-80:]!r} with {actual.count(tokenizer.image_id)} image slots"
            hint = "Encode what a user writes as text, never as special tokens."
            return check.failed(case, f"{said}. {hint}", where=Where(method="token_embedding"))
    wrong = _against(check, evidence, case, actual, dialogue_parts(turns)) or _bos(check, evidence, case, actual)
    return wrong or _spliced(check, evidence, case, segments, count, limit)


def _spliced(  # noqa: PLR0917
    check: Check, evidence: Evidence, case: str, segments: tuple[Segment, ...], count: int, limit: int
) -> CheckResult:
    script, needed = Script(), _tokens_of(evidence, segments)
    side = evidence.checkpoint.geometry.vision.image_px
    pictures = [np.full((3, side, side), number, np.uint8) for number in range(count)]
    fields = {"measured": {"tokens": needed}, "allowed": {"tokens": limit}}
    try:
        splice(script, segments, pictures, patches=evidence.patches, limit=limit)
    except UsageError as error:
        if needed > limit:
            # not a fault of the file: it says what it can hold, and the driver keeps to it
            return check.passed(
                case,
                f"ids as Hugging Face's; refused: {error.got}, the program holds {limit}",
                measured={"tokens": needed},
            )
        return check.failed(
            case, f"refused although it fits: {error.got}", where=Where(method="text_decoder"), **fields
        )
    spans = _lengths(evidence, tuple(script.calls), 0)
    position, wanted = 0, []
    for segment in segments:
        wanted.append((position, evidence.patches if segment is None else len(segment)))
        position += wanted[-1][1]
    fed = [c.inputs[0] for c in script.calls if c.method == "text_decoder"]
    shown = [c.call for c, segment in zip(fed, segments, strict=False) if segment is None and isinstance(c, OutputOf)]
    encoders = [i for i, call in enumerate(script.calls) if call.method == "vision_encoder"]
    if spans != wanted or shown != encoders:
        at = next(
            (i for i, (a, e) in enumerate(zip(spans, wanted, strict=False)) if a != e), min(len(spans), len(wanted)) - 1
        )
        said = f"decoder call {at} covers {spans[at][1]} tokens from {spans[at][0]}, expected {wanted[at][1]} from {wanted[at][0]}; images of calls {shown}, expected {encoders}"
        hint = "Feed text and images in their order, each chunk where the last one ended."
        return check.failed(
            case, f"{said}. {hint}", where=Where(method="text_decoder", index=(spans[at][0],)), **fields
        )
    return check.passed(case, f"{needed} positions, {count} images in their slots, ids as Hugging Face's", **fields)


def template(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The prompt that the checkpoint's chat template spells, beside the one that is verified. They need not be the same; where they are not,
    both are shown: whoever uses the template in an app uses another prompt than this verdict speaks of."""
    tokenizer = evidence.tokenizer
    verified = tokenizer.spelled(caption_parts(DEFAULT_QUESTION))
    try:
        found = find_template(evidence.checkpoint.directory)
        if found is None:
            said = "the checkpoint has no chat template"
            return [CheckResult(check.id, check.step, "prompt", "skipped", said, {"verified": verified})]
        spelled = render(found, tokenizer, DEFAULT_QUESTION).removeprefix(tokenizer.piece(tokenizer.bos_id))
    except CheckpointError as error:
        return [check.error("prompt", error.one_line)]
    fields = {"measured": {"verified": verified, "template": spelled, "source": found.source}}
    if spelled == verified:
        return [check.passed("prompt", f"{found.source} spells the prompt that is verified", **fields)]
    said = f"{found.source} spells another prompt than the one that is verified: {spelled!r}, verified is {verified!r}"
    return [check.passed("prompt", f"{said}. Ask with the verified one, or verify the other in the app", **fields)]


def positions(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every chunk starts where the last one ended, from 0; the image takes exactly its 576 slots."""
    results, offset = [], 0
    for case in evidence.cases:
        name, prompt = case.sample.golden.name, case.sample.prompt
        stale = _stale_image(check, case, offset)
        if stale is not None:
            results.append(stale)
            offset += len(case.calls)
            continue
        spans = _lengths(evidence, case.calls, offset)
        offset += len(case.calls)
        expected, position = [], 0
        for size in (len(prompt.before), evidence.patches, len(prompt.after), *[1] * (len(case.sample.golden.ids) - 1)):
            expected.append((position, size))
            position += size
        if spans != expected:
            at = next(
                (i for i, (a, e) in enumerate(zip(spans, expected, strict=False)) if a != e),
                min(len(spans), len(expected)),
            )
            got, want = [*spans, (-1, -1)][at], [*expected, (-1, -1)][at]
            results.append(
                check.failed(
                    name,
                    f"decoder call {at} covers {got[1]} tokens from position {got[0]}, expected {want[1]} from {want[0]}. "
                    "Advance input_pos by the length of every chunk, the image's included.",
                    measured={"start": got[0], "tokens": got[1]},
                    allowed={"start": want[0], "tokens": want[1]},
                    where=Where(method="text_decoder", index=(got[0],)),
                )
            )
        else:
            results.append(
                check.passed(name, f"{len(spans)} chunks without gap or overlap, {evidence.patches} image slots")
            )
    return results


def _stale_image(check: Check, case: Case, offset: int) -> CheckResult | None:
    """A failure if the decoder is fed with the output of a call that another conversation made."""
    for number, call in enumerate(case.calls):
        source = call.inputs[0]
        if isinstance(source, OutputOf) and source.call < offset:
            said = f"call {number} of the conversation is fed with the output of call {source.call}, made {offset - source.call} calls before it began"
            hint = "The image of an earlier request is used again: run vision_encoder for each."
            return check.failed(case.sample.golden.name, f"{said}. {hint}", where=Where(method="vision_encoder"))
    return None


def capacity(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The longest golden conversation fits below the program's limit."""
    if not evidence.cases:
        return [check.error("program", "there is no conversation to hold against the program's length")]
    longest = max(
        case.sample.prompt.length(evidence.patches) + len(case.sample.golden.ids) - 1 for case in evidence.cases
    )
    limit = evidence.artifact.max_seq_len
    fields = {"measured": {"tokens": longest}, "allowed": {"tokens": limit}}
    if not stated(check.id, limit, "count", "most").admits(longest):
        return [
            check.failed(
                "program",
                f"the longest golden conversation takes {longest} tokens, the program holds {limit}. Export with a larger --max-seq-len.",
                **fields,
            )
        ]
    return [check.passed("program", f"the longest conversation takes {longest} of {limit} tokens", **fields)]


CHECKS = (
    Check("splice.tokens", "mapping", per_image, tokens),
    Check("splice.template", "mapping", fixed_cases("prompt"), template),
    Check("splice.positions", "mapping", per_image, positions),
    Check("splice.prompts", "mapping", fixed_cases(*PROMPTS), prompts),
    Check("splice.capacity", "mapping", one_case, capacity),
)
