"""`splice.*`: what is fed to the decoder, token by token and position by position, judged from the calls that were made."""

from __future__ import annotations

from typing import Any

from runner.protocol import ArgmaxOf, Call, OutputOf
from verifier.checks.common import Check, one_case, per_image
from verifier.evidence import Case, Evidence
from verifier.model.prompt import spelled
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


def positions(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every chunk starts where the last one ended, from 0; the image takes exactly its 576 slots."""
    results, offset = [], 0
    for case in evidence.cases:
        name, prompt = case.sample.golden.name, case.sample.prompt
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


def capacity(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The longest golden conversation fits below the program's limit."""
    longest = max(
        case.sample.prompt.length(evidence.patches) + len(case.sample.golden.ids) - 1 for case in evidence.cases
    )
    limit = evidence.artifact.max_seq_len
    fields = {"measured": {"tokens": longest}, "allowed": {"tokens": limit}}
    if longest > limit:
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
    Check("splice.capacity", "mapping", one_case, capacity),
)
