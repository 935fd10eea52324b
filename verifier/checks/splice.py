"""`splice.*`: what is fed to the decoder, token by token and position by position, judged from the calls that were made."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.checks.common import Check, fixed_cases, one_case, per_image
from verifier.core.limits import stated
from verifier.driver import Script, splice
from verifier.errors import UsageError
from verifier.evidence import Case, Evidence
from verifier.model.prompt import Segment, Turn, dialogue_segments, spelled, spelled_dialogue
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


def tokens(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The ids around the image are Hugging Face's for the same conversation: one BOS, at the start, and 576 image slots."""
    from transformers import AutoTokenizer

    try:
        reference = AutoTokenizer.from_pretrained(evidence.checkpoint.directory, local_files_only=True)
    except (OSError, ValueError) as error:
        return [
            check.error(case.sample.golden.name, f"Hugging Face cannot load the tokenizer: {error}")
            for case in evidence.cases
        ]
    return [_tokens(check, evidence, case, reference) for case in evidence.cases]


def _tokens(check: Check, evidence: Evidence, case: Case, reference: Any) -> CheckResult:
    name, prompt, image_id = case.sample.golden.name, case.sample.prompt, evidence.checkpoint.geometry.image_token_id
    bos = evidence.tokenizer.bos_id
    ids = fed_ids(case.calls)
    answer = list(case.sample.golden.ids[:-1])
    fed = ids[: len(ids) - len(answer)] if answer else ids
    where = Where(method="token_embedding")
    once = [*prompt.before, *prompt.after]
    if fed == 2 * once:
        said = f"the whole prompt goes in twice, the second time as token {len(once)}: positions and cache are those of another conversation"
        return check.failed(name, f"{said}. Prefill once.", where=Where(method="token_embedding", index=(len(once),)))
    if fed.count(bos) != 1 or fed[0] != bos:
        at = [i for i, token in enumerate(fed) if token == bos]
        return check.failed(
            name,
            f"BOS stands at {at} of the prompt, expected once, at 0. Encode only the first segment with BOS.",
            where=where,
        )
    if not case.sample.golden.question:
        return check.passed(name, "one BOS, at the start (the seed's prompt has no Hugging Face spelling)")
    expected = [int(i) for i in reference(spelled(case.sample.golden.question))["input_ids"]]
    actual = [*prompt.before, image_id, *fed[len(prompt.before) :]]
    if actual != expected:
        at_first = next(
            (i for i, (a, e) in enumerate(zip(actual, expected, strict=False)) if a != e),
            min(len(actual), len(expected)),
        )
        return check.failed(
            name,
            f"the prompt's token {at_first} is {actual[at_first : at_first + 1]}, Hugging Face has {expected[at_first : at_first + 1]} "
            f"({len(actual)} tokens against {len(expected)}). Check template spacing and BOS.",
            where=Where(method="token_embedding", index=(at_first,)),
        )
    return check.passed(name, f"{len(actual) - 1} text tokens as Hugging Face's, one BOS")


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
    from transformers import AutoTokenizer

    try:
        reference = AutoTokenizer.from_pretrained(evidence.checkpoint.directory, local_files_only=True)
    except (OSError, ValueError) as error:
        return [check.error(case, f"Hugging Face cannot load the tokenizer: {error}") for case in PROMPTS]
    return [_prompt(check, evidence, case, turns or _longest(evidence), reference) for case, turns in PROMPTS.items()]


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


def _prompt(check: Check, evidence: Evidence, case: str, turns: tuple[Turn, ...], reference: Any) -> CheckResult:
    image_id, bos = evidence.checkpoint.geometry.image_token_id, evidence.tokenizer.bos_id
    segments = dialogue_segments(evidence.tokenizer, turns)
    count, limit = sum(turn.images for turn in turns), evidence.artifact.max_seq_len
    actual = [token for segment in segments for token in ((image_id,) if segment is None else segment)]
    where = Where(method="token_embedding")
    if case.startswith("literal"):
        asked = evidence.tokenizer.decode(
            [i for segment in segments if segment is not None for i in segment if i != bos]
        )
        if actual.count(image_id) != count or evidence.tokenizer.eos_id in actual or turns[0].question not in asked:
            said = f"the user's text {turns[0].question!r} is fed as {asked[-80:]!r} with {actual.count(image_id)} image slots"
            return check.failed(
                case, f"{said}. Encode what a user writes as text, never as special tokens.", where=where
            )
    else:
        expected = [int(i) for i in reference(spelled_dialogue(turns))["input_ids"]]
        if actual != expected:
            at = next(
                (i for i, (a, e) in enumerate(zip(actual, expected, strict=False)) if a != e),
                min(len(actual), len(expected)),
            )
            said = f"token {at} is {actual[at : at + 1]}, Hugging Face has {expected[at : at + 1]} ({len(actual)} tokens against {len(expected)})"
            hint = "Check template spacing, BOS, and how text behind a special token is encoded."
            return check.failed(case, f"{said}. {hint}", where=Where(method="token_embedding", index=(at,)))
    if actual.count(bos) != 1 or actual[0] != bos:
        said = f"BOS stands at {[i for i, token in enumerate(actual) if token == bos]}, expected once, at 0"
        return check.failed(case, f"{said}. Encode only the first segment with BOS.", where=where)
    return _spliced(check, evidence, case, segments, count, limit)


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
    Check("splice.positions", "mapping", per_image, positions),
    Check("splice.prompts", "mapping", fixed_cases(*PROMPTS), prompts),
    Check("splice.capacity", "mapping", one_case, capacity),
)
