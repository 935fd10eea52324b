"""`splice.*`: what is fed to the decoder, token by token and position by position, judged from the calls that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.checks.bands import Conversations, calls_of_conversations, take_conversations
from verifier.checks.check import (
    Fields,
    Finding,
    check,
    failed,
    fixed_cases,
    need,
    one_case,
    passed,
    per_image,
    skipped,
    unverified,
)
from verifier.core.limits import stated
from verifier.driver import Script, splice
from verifier.errors import CheckpointError, UsageError
from verifier.evidence import Case, Evidence, Part
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.llava.prompt import (
    BEFORE_IMAGE,
    DEFAULT_QUESTION,
    SEED_CUE,
    Segment,
    Turn,
    caption_parts,
    dialogue_parts,
    dialogue_segments,
)
from verifier.families.tokens.chat_template import find_template, render
from verifier.families.tokens.tokenizer import Mark, described
from verifier.families.tokens.tokenizer import Part as TextPart
from verifier.runner.protocol import ArgmaxOf, Call, OutputOf
from verifier.types import Missing, Where


def fed_ids(calls: tuple[Call, ...]) -> list[int]:
    """Ids of all token_embedding calls, in order."""
    return [int(i) for call in calls if call.method == EMBEDDING for i in _array(call.inputs[0]).reshape(-1)]


def _array(value: Any) -> Any:
    if isinstance(value, (OutputOf, ArgmaxOf)):
        raise TypeError("an id input is an array")
    return value


def _lengths(evidence: Evidence, calls: tuple[Call, ...], offset: int) -> list[tuple[int, int]]:
    """(start position, tokens) of every text_decoder call."""
    spans = []
    for call in calls:
        if call.method != DECODER:
            continue
        source = call.inputs[0]
        if isinstance(source, OutputOf):
            producer = calls[source.call - offset]
            tokens = evidence.patches if producer.method == ENCODER else _array(producer.inputs[0]).size
        else:
            tokens = _array(source).shape[1]
        spans.append((int(_array(call.inputs[1])[0]), int(tokens)))
    return spans


def _expected(evidence: Evidence, parts: tuple[TextPart, ...]) -> tuple[list[int], list[int]]:
    """Ids of a text by transformers, and by the second encoder, each with BOS as the tokenizer puts it. A text that spells a special token
    is no text to transformers: then the second encoder speaks for both. Raises `CheckpointError` if transformers cannot load the files."""
    tokenizer = evidence.tokenizer
    front = [tokenizer.bos_id] if tokenizer.adds_bos else []
    second = [*front, *tokenizer.second_ids(parts)]
    if not all(tokenizer.is_plain(part) for part in parts if isinstance(part, str)):
        return second, second
    return tokenizer.reference.encode(tokenizer.spelled(parts)), second


def _against(evidence: Evidence, actual: list[int], parts: tuple[TextPart, ...]) -> Finding | None:
    """What is wrong with ids, None if they are those of both references."""
    try:
        expected, second = _expected(evidence, parts)
    except CheckpointError as error:
        return unverified(error.one_line)
    other = evidence.tokenizer.second.name
    if expected != second:
        at = _first_difference(expected, second)
        said = f"token {at} is {expected[at : at + 1]} by transformers and {second[at : at + 1]} by {other}"
        return unverified(f"the references make different ids of this prompt: {said}")
    if actual == expected:
        return None
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {actual[at : at + 1]}, Hugging Face has {expected[at : at + 1]}"
    rule = described(evidence.tokenizer.rule.as_json())
    hint = f"Check template spacing, BOS, and what stands behind a special token: this checkpoint has {rule}."
    message = f"{said} ({len(actual)} tokens against {len(expected)}). {hint}"
    return failed(message, where=Where(method=EMBEDDING, index=(at,)))


def _first_difference(one: list[int], two: list[int]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def _bos(evidence: Evidence, ids: list[int]) -> Finding | None:
    """A failure if BOS stands anywhere but where the tokenizer puts it: once, at 0, or nowhere."""
    at = [number for number, token in enumerate(ids) if token == evidence.tokenizer.bos_id]
    wanted = [0] if evidence.tokenizer.adds_bos else []
    if at == wanted:
        return None
    said = f"BOS stands at {at} of the prompt, expected {'once, at 0' if wanted else 'nowhere'}"
    return failed(f"{said}. Encode only the first segment with BOS.", where=Where(method=EMBEDDING))


@check("splice.tokens", step="mapping", needs=calls_of_conversations, cases=per_image, limit="equal")
def tokens(given: Conversations, name: str) -> Finding:
    """The ids that are fed around the image equal Hugging Face's ids for the same conversation: BOS at the start if the tokenizer adds it, and as
    many image slots as the encoder gives tokens."""
    case, evidence = given.cases[name], given.evidence
    prompt, tokenizer = case.sample.prompt, evidence.tokenizer
    ids = fed_ids(case.calls)
    answer = list(case.sample.golden.ids[:-1])
    fed = ids[: len(ids) - len(answer)] if answer else ids
    once = [*prompt.before, *prompt.after]
    if fed == 2 * once:
        said = f"the whole prompt goes in twice, the second time as token {len(once)}: positions and cache are those of another conversation"
        return failed(f"{said}. Prefill once.", where=Where(method=EMBEDDING, index=(len(once),)))
    wrong = _bos(evidence, fed)
    if wrong is not None:
        return wrong
    actual = [*prompt.before, tokenizer.image_id, *fed[len(prompt.before) :]]
    if not case.sample.golden.question:
        return _seed_tokens(evidence, actual)
    wrong = _against(evidence, actual, caption_parts(case.sample.golden.question))
    said = "one BOS" if tokenizer.adds_bos else "no BOS, as the tokenizer has it"
    return wrong or passed(f"{len(actual) - 1} text tokens as Hugging Face's, {said}")


def _seed_tokens(evidence: Evidence, actual: list[int]) -> Finding:
    """The seed's prompt has no Hugging Face spelling: its cue is a text of its own, behind the image."""
    tokenizer = evidence.tokenizer
    front = [tokenizer.bos_id] if tokenizer.adds_bos else []
    expected = [*front, *tokenizer.second_ids((BEFORE_IMAGE, Mark.IMAGE)), *tokenizer.second_ids((SEED_CUE,))]
    if actual == expected:
        return passed(f"BOS where it belongs; ids of the seed's prompt as by {tokenizer.second.name}")
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {actual[at : at + 1]}, {tokenizer.second.name} has {expected[at : at + 1]}"
    return failed(f"{said}. Check template spacing.", where=Where(method=EMBEDDING, index=(at,)))


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


@need(Part.PROMPTS)
def tokenizers(evidence: Evidence) -> Evidence:
    """The tokenizer, which agrees with transformers', among the rest."""
    return evidence


@check("splice.prompts", step="mapping", needs=tokenizers, cases=fixed_cases(*PROMPTS), limit="equal")
def prompts(evidence: Evidence, case: str) -> Finding:
    """For unusual prompts the ids equal Hugging Face's, BOS stands once, each image takes its own slots, and no position is left out. A prompt that
    is too long is refused."""
    return _prompt(evidence, case, PROMPTS[case] or _longest(evidence))


def _tokens_of(evidence: Evidence, segments: tuple[Segment, ...]) -> int:
    return sum(evidence.patches if segment is None else len(segment) for segment in segments)


def _longest(evidence: Evidence) -> tuple[Turn, ...]:
    """One question of as many words as the program holds, to the token if the tokenizer allows it."""
    limit = evidence.program.max_seq_len

    def fits(text: str) -> bool:
        return _tokens_of(evidence, dialogue_segments(evidence.tokenizer, (Turn(text),))) <= limit

    words = next(count for count in range(limit) if not fits(LONG * (count + 1)))
    text = LONG * words
    while fits(text + "a "):
        text += "a "
    return (Turn(text),)


def _prompt(evidence: Evidence, case: str, turns: tuple[Turn, ...]) -> Finding:
    tokenizer = evidence.tokenizer
    segments = dialogue_segments(tokenizer, turns)
    count, limit = sum(turn.images for turn in turns), evidence.program.max_seq_len
    actual = [token for segment in segments for token in ((tokenizer.image_id,) if segment is None else segment)]
    if case.startswith("literal"):
        asked = tokenizer.decode([i for segment in segments if segment is not None for i in segment])
        if actual.count(tokenizer.image_id) != count or tokenizer.eos_id in actual or turns[0].question not in asked:
            said = f"the user's text {turns[0].question!r} is fed as {asked[-80:]!r} with {actual.count(tokenizer.image_id)} image slots"
            hint = "Encode what a user writes as text, never as special tokens."
            return failed(f"{said}. {hint}", where=Where(method=EMBEDDING))
    wrong = _against(evidence, actual, dialogue_parts(turns)) or _bos(evidence, actual)
    return wrong or _spliced(evidence, segments, count, limit)


def _spliced(evidence: Evidence, segments: tuple[Segment, ...], count: int, limit: int) -> Finding:
    script, needed = Script(), _tokens_of(evidence, segments)
    side = evidence.geometry.vision.image_px
    pictures = [np.full((3, side, side), number, np.uint8) for number in range(count)]
    fields: Fields = {"measured": {"tokens": needed}, "allowed": {"tokens": limit}}
    try:
        splice(script, segments, pictures, patches=evidence.patches, limit=limit)
    except UsageError as error:
        if needed > limit:
            # not a fault of the file: it says what it can hold, and the driver keeps to it
            return passed(
                f"ids as Hugging Face's; refused: {error.got}, the program holds {limit}",
                measured={"tokens": needed},
            )
        return failed(f"refused although it fits: {error.got}", fields, where=Where(method=DECODER))
    spans = _lengths(evidence, tuple(script.calls), 0)
    position, wanted = 0, []
    for segment in segments:
        wanted.append((position, evidence.patches if segment is None else len(segment)))
        position += wanted[-1][1]
    fed = [c.inputs[0] for c in script.calls if c.method == DECODER]
    shown = [c.call for c, segment in zip(fed, segments, strict=False) if segment is None and isinstance(c, OutputOf)]
    encoders = [i for i, call in enumerate(script.calls) if call.method == ENCODER]
    if spans != wanted or shown != encoders:
        at = next(
            (i for i, (a, e) in enumerate(zip(spans, wanted, strict=False)) if a != e), min(len(spans), len(wanted)) - 1
        )
        said = f"decoder call {at} covers {spans[at][1]} tokens from {spans[at][0]}, expected {wanted[at][1]} from {wanted[at][0]}; images of calls {shown}, expected {encoders}"
        hint = "Feed text and images in their order, each chunk where the last one ended."
        return failed(f"{said}. {hint}", fields, where=Where(method=DECODER, index=(spans[at][0],)))
    return passed(f"{needed} positions, {count} images in their slots, ids as Hugging Face's", fields)


@check("splice.template", step="mapping", needs=tokenizers, cases=fixed_cases("prompt"), optional=True)
def template(evidence: Evidence, _case: str) -> Finding:
    """Shows the prompt that the checkpoint's chat template spells beside the prompt that is verified. They may differ; then both are shown, because
    an app that uses the template asks with a prompt that this verdict does not cover."""
    tokenizer = evidence.tokenizer
    verified = tokenizer.spelled(caption_parts(DEFAULT_QUESTION))
    try:
        found = find_template(evidence.checkpoint.directory)
        if found is None:
            said = "the checkpoint has no chat template"
            return skipped(said, measured={"verified": verified})
        spelled = render(found, tokenizer, DEFAULT_QUESTION).removeprefix(tokenizer.piece(tokenizer.bos_id))
    except CheckpointError as error:
        return unverified(error.one_line)
    fields: Fields = {"measured": {"verified": verified, "template": spelled, "source": found.source}}
    if spelled == verified:
        return passed(f"{found.source} spells the prompt that is verified", fields)
    said = f"{found.source} spells another prompt than the one that is verified: {spelled!r}, verified is {verified!r}"
    return passed(f"{said}. Ask with the verified one, or verify the other in the app", fields)


@dataclass(frozen=True)
class Positioned(Conversations):
    """The golden conversations, and how many calls were made before each."""

    offsets: dict[str, int]


@need(Part.CONVERSATIONS, golden=True)
def positioned(evidence: Evidence) -> Positioned | Missing:
    """The calls of all golden conversations, one behind the other."""
    found = take_conversations(evidence)
    if isinstance(found, Missing):
        return found
    offsets, offset = {}, 0
    for name, case in found.cases.items():
        offsets[name], offset = offset, offset + len(case.calls)
    return Positioned(evidence, found.cases, offsets)


@check("splice.positions", step="mapping", needs=positioned, cases=per_image, limit="equal")
def positions(given: Positioned, name: str) -> Finding:
    """Every chunk starts at the position where the last one ended, beginning at 0, and an image takes exactly as many positions as it has tokens."""
    case, evidence, offset = given.cases[name], given.evidence, given.offsets[name]
    stale = _stale_image(case, offset)
    if stale is not None:
        return stale
    prompt, position = case.sample.prompt, 0
    spans, expected = _lengths(evidence, case.calls, offset), []
    for size in (len(prompt.before), evidence.patches, len(prompt.after), *[1] * (len(case.sample.golden.ids) - 1)):
        expected.append((position, size))
        position += size
    if spans == expected:
        return passed(f"{len(spans)} chunks without gap or overlap, {evidence.patches} image slots")
    shorter = min(len(spans), len(expected))
    at = next((i for i, (a, e) in enumerate(zip(spans, expected, strict=False)) if a != e), shorter)
    got, want = [*spans, (-1, -1)][at], [*expected, (-1, -1)][at]
    return failed(
        f"decoder call {at} covers {got[1]} tokens from position {got[0]}, expected {want[1]} from {want[0]}. "
        "Advance input_pos by the length of every chunk, the image's included.",
        measured={"start": got[0], "tokens": got[1]},
        allowed={"start": want[0], "tokens": want[1]},
        where=Where(method=DECODER, index=(got[0],)),
    )


def _stale_image(case: Case, offset: int) -> Finding | None:
    """A failure if the decoder is fed with the output of a call that another conversation made."""
    for number, call in enumerate(case.calls):
        source = call.inputs[0]
        if isinstance(source, OutputOf) and source.call < offset:
            said = f"call {number} of the conversation is fed with the output of call {source.call}, made {offset - source.call} calls before it began"
            hint = "The image of an earlier request is used again: run vision_encoder for each."
            return failed(f"{said}. {hint}", where=Where(method=ENCODER))
    return None


@check("splice.capacity", step="mapping", needs=calls_of_conversations, cases=one_case)
def capacity(given: Conversations, _case: str) -> Finding:
    """The longest golden conversation fits into the program's `max_seq_len`."""
    evidence = given.evidence
    longest = max(
        case.sample.prompt.length(evidence.patches) + len(case.sample.golden.ids) - 1 for case in evidence.cases
    )
    limit = evidence.program.max_seq_len
    fields: Fields = {"measured": {"tokens": longest}, "allowed": {"tokens": limit}}
    if not stated("splice.capacity", limit, "count", "most").admits(longest):
        return failed(
            f"the longest golden conversation takes {longest} tokens, the program holds {limit}. Export with a larger --max-seq-len.",
            fields,
        )
    return passed(f"the longest conversation takes {longest} of {limit} tokens", fields)


CHECKS = (tokens, template, positions, prompts, capacity)
