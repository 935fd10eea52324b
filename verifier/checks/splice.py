"""`splice.*`: what is fed to the decoder, token by token and position by position, judged from the calls that were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER, text_piece
from verifier.families.driver import chunk_sizes
from verifier.families.tokens.records import described
from verifier.measures.evidence import Case, Evidence, Part
from verifier.measures.prompts import (
    PROMPTS,
    Dialogue,
    PromptEvidence,
    ReferenceIds,
    TemplatePrompt,
    chunks_of,
    fed_ids,
    tokens_of,
)
from verifier.runner.protocol import OutputOf


@dataclass(frozen=True)
class Prompted(Conversations):
    """Golden conversations, none for a check of other prompts, and what the references make of all prompts."""

    prompts: PromptEvidence


@need(Part.CONVERSATIONS, golden=True)
def golden_prompts(evidence: Evidence) -> Prompted | Missing:
    """The golden conversations, with the ids that their prompts should have."""
    found, prompts = take_conversations(evidence), evidence.prompts
    if isinstance(found, Missing):
        return found
    return prompts if isinstance(prompts, Missing) else Prompted(evidence, found.cases, prompts)


@need(Part.PROMPTS)
def unusual_prompts(evidence: Evidence) -> Prompted | Missing:
    """Prompts beside the golden ones."""
    prompts = evidence.prompts
    return prompts if isinstance(prompts, Missing) else Prompted(evidence, {}, prompts)


def _against(given: Prompted, actual: Sequence[int], reference: ReferenceIds | Missing) -> Finding | None:
    """What is wrong with ids, None if they are those of both references."""
    if isinstance(reference, Missing):
        return unverified(reference.reason)
    expected, second = reference.transformers, reference.second
    if expected != second:
        at = _first_difference(expected, second)
        said = f"token {at} is {_at(expected, at)} by transformers and {_at(second, at)} by {given.prompts.second}"
        return unverified(f"the reference tokenizers give different ids for this prompt: {said}")
    if tuple(actual) == expected:
        return None
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {_at(actual, at)}, Hugging Face has {_at(expected, at)}"
    rule = described(given.evidence.tokens.rule.as_json())
    hint = f"Check template spacing, BOS, and what follows a special token: this checkpoint has {rule}."
    message = f"{said} ({len(actual)} tokens against {len(expected)}). {hint}"
    return failed(message, where=Where(method=EMBEDDING, index=(at,)))


def _at(ids: Sequence[int], at: int) -> list[int]:
    """The id at a place, nothing behind the end."""
    return list(ids[at : at + 1])


def _first_difference(one: Sequence[int], two: Sequence[int]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def _bos(evidence: Evidence, ids: Sequence[int]) -> Finding | None:
    """A failure if BOS stands anywhere but where the tokenizer puts it: once, at 0, or nowhere."""
    at = [number for number, token in enumerate(ids) if token == evidence.tokens.bos_id]
    wanted = [0] if evidence.tokens.adds_bos else []
    if at == wanted:
        return None
    said = f"BOS stands at {at} of the prompt, expected {'once, at 0' if wanted else 'nowhere'}"
    return failed(f"{said}. Encode only the first segment with BOS.", where=Where(method=EMBEDDING))


@check("splice.tokens", step="mapping", needs=golden_prompts, cases=per_image, limit="equal")
def tokens(given: Prompted, name: str) -> Finding:
    """The ids that are fed around the image equal Hugging Face's ids for the same conversation: BOS at the start if the tokenizer adds it, and as
    many image slots as the encoder gives tokens."""
    case, evidence = given.cases[name], given.evidence
    prompt, question = case.sample.prompt, case.sample.golden.question
    ids = fed_ids(case.calls)
    answer = list(case.sample.golden.ids[:-1])
    fed = ids[: len(ids) - len(answer)] if answer else ids
    once = [*prompt.before, *prompt.after]
    if fed == 2 * once:
        said = f"the whole prompt is fed twice, the second time from position {len(once)} on: the cache then holds it twice"
        return failed(f"{said}. Prefill once.", where=Where(method=EMBEDDING, index=(len(once),)))
    wrong = _bos(evidence, fed)
    if wrong is not None:
        return wrong
    actual = [*prompt.before, evidence.tokens.image_id, *fed[len(prompt.before) :]]
    reference = given.prompts.captions.get(question, Missing(f"no reference encoded {question!r}", "verifier"))
    if not question:
        return _seed_tokens(given, actual, reference)
    wrong = _against(given, actual, reference)
    said = "one BOS" if evidence.tokens.adds_bos else "no BOS, as the tokenizer adds none"
    return wrong or passed(f"{len(actual) - 1} text tokens equal Hugging Face's, {said}")


def _seed_tokens(given: Prompted, actual: list[int], reference: ReferenceIds | Missing) -> Finding:
    """The seed's prompt has no Hugging Face spelling: its cue is a text of its own, behind the image."""
    if isinstance(reference, Missing):
        return unverified(reference.reason)
    expected, second = reference.second, given.prompts.second
    if tuple(actual) == expected:
        return passed(f"BOS is in the right place; the ids of the prompt without a question equal those of {second}")
    at = _first_difference(actual, expected)
    said = f"the prompt's token {at} is {_at(actual, at)}, {second} has {_at(expected, at)}"
    return failed(f"{said}. Check template spacing.", where=Where(method=EMBEDDING, index=(at,)))


@check(
    "splice.prompts",
    step="mapping",
    needs=unusual_prompts,
    cases=fixed_cases(*PROMPTS),
    limit="equal",
    overlap="a wrong prompt is wrong for golden questions, too; this one tries other questions",
)
def prompts(given: Prompted, case: str) -> Finding:
    """For unusual prompts the ids equal Hugging Face's, BOS stands once, each image takes its own slots, and no position is left out. A prompt that
    is too long is refused."""
    evidence, tokens, dialogue = given.evidence, given.evidence.tokens, given.prompts.dialogues[case]
    actual = [token for segment in dialogue.segments for token in ((tokens.image_id,) if segment is None else segment)]
    if case.startswith("literal"):
        slots, fed = actual.count(tokens.image_id), dialogue.text
        if slots != dialogue.images or tokens.eos_id in actual or dialogue.question not in fed:
            said = f"the user's text {dialogue.question!r} is fed as {fed[-80:]!r} with {slots} image slots"
            hint = "Encode what a user writes as text, never as special tokens."
            return failed(f"{said}. {hint}", where=Where(method=EMBEDDING))
    wrong = _against(given, actual, dialogue.reference) or _bos(evidence, actual)
    return wrong or _spliced(
        dialogue, patches=evidence.patches, limit=given.prompts.limit, text=text_piece(evidence.program.methods)
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where chunks of these sizes start."""
    return list(accumulate(sizes, initial=0))[: len(sizes)]


def _spliced(dialogue: Dialogue, *, patches: int, limit: int, text: int) -> Finding:
    needed = tokens_of(dialogue.segments, patches)
    fields: Fields = {"measured": {"tokens": needed}, "allowed": {"tokens": limit}}
    if dialogue.refusal is not None:
        if needed > limit:
            # not a fault of the file: it says what it can hold, and the driver keeps to it
            return passed(
                f"ids equal Hugging Face's; refused as too long: {dialogue.refusal}, the program has room for {limit}",
                measured={"tokens": needed},
            )
        return failed(f"refused although it fits: {dialogue.refusal}", fields, where=Where(method=DECODER))
    sizes = chunk_sizes(dialogue.segments, patches=patches, text=text)
    expected = list(zip(_starts(sizes), sizes, strict=True))
    chunks = list(dialogue.chunks)
    if chunks != expected or dialogue.shown != dialogue.encoders:
        pairs = enumerate(zip(chunks, expected, strict=False))
        at = next((i for i, (a, e) in pairs if a != e), max(0, min(len(chunks), len(expected)) - 1))
        got, want = [*chunks, (-1, -1)][at], expected[at]
        said = (
            f"decoder call {at} covers {got[1]} tokens from {got[0]}, expected {want[1]} from {want[0]}; "
            f"images of calls {list(dialogue.shown)}, expected {list(dialogue.encoders)}"
        )
        hint = "Feed text and images in their order, each chunk from the position where the last one ended."
        return failed(f"{said}. {hint}", fields, where=Where(method=DECODER, index=(got[0],)))
    return passed(f"{needed} positions, {dialogue.images} images in their slots, ids equal Hugging Face's", fields)


@need(Part.TEMPLATE)
def chat_template(evidence: Evidence) -> TemplatePrompt | Missing:
    """The prompts by the chat template and by the verifier."""
    return evidence.template


@check(
    "splice.template",
    step="mapping",
    needs=chat_template,
    cases=fixed_cases("prompt"),
    optional=True,
    overlap="a chat template that differs is tried by tests: the bench's checkpoints have the published one",
)
def template(given: TemplatePrompt, _case: str) -> Finding:
    """Shows the prompt that the checkpoint's chat template spells beside the prompt that is verified. They may differ; then both are shown, because
    an app that uses the template asks with a prompt that this verdict does not cover."""
    if not given.source:
        return skipped("the checkpoint has no chat template", measured={"verified": given.verified})
    fields: Fields = {
        "measured": {"verified": given.verified, "template": given.spells, "source": given.source},
    }
    if given.spells == given.verified:
        return passed(f"{given.source} renders the prompt that is verified", fields)
    said = f"{given.source} renders another prompt than the one that is verified: rendered {given.spells!r}, verified {given.verified!r}"
    return passed(f"{said}. Use the verified prompt in the app, or verify the rendered one there", fields)


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


@check(
    "splice.positions",
    step="mapping",
    needs=positioned,
    cases=per_image,
    limit="equal",
    overlap="a wrong position also gives wrong answers; this one needs no answer",
)
def positions(given: Positioned, name: str) -> Finding:
    """Every chunk starts at the position where the last one ended, beginning at 0, and an image takes exactly as many positions as it has tokens.
    Text that is longer than one call takes goes in in pieces."""
    case, evidence, offset = given.cases[name], given.evidence, given.offsets[name]
    stale = _stale_image(case, offset)
    if stale is not None:
        return stale
    prompt, text = case.sample.prompt, text_piece(evidence.program.methods)
    spans = list(chunks_of(case.calls, patches=evidence.patches, offset=offset))
    sizes = chunk_sizes((prompt.before, None, prompt.after), patches=evidence.patches, text=text)
    sizes += [1] * (len(case.sample.golden.ids) - 1)
    expected = list(zip(_starts(sizes), sizes, strict=True))
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
            said = f"call {number} of the conversation takes the output of call {source.call}, {offset - source.call} calls before the conversation began"
            hint = "The image of an earlier request is used again: run vision_encoder for each."
            return failed(f"{said}. {hint}", where=Where(method=ENCODER))
    return None


@check(
    "splice.capacity",
    step="mapping",
    needs=calls_of_conversations,
    cases=one_case,
    overlap="a prompt that does not fit is refused by the program; this one needs no call",
)
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
            f"the longest golden conversation takes {longest} tokens, the program has room for {limit}. Export with a larger --max-seq-len.",
            fields,
        )
    return passed(f"the longest conversation takes {longest} of {limit} tokens", fields)


CHECKS = (tokens, template, positions, prompts, capacity)
