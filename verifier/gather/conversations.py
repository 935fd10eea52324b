"""The conversations that a program is run through, on one loaded program, and what it answered in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from verifier.artifact.program import Declarations
from verifier.core.types import Missing, Prompt
from verifier.families.driver import Caller, Conversation, Script, converse, converse_freely, vocabulary_calls
from verifier.families.samples import Answered, Sample
from verifier.measures.evidence import USER, Case, FullAnswer, RuntimeEvidence, answered_freely
from verifier.measures.pixels import thumbnail
from verifier.measures.probes import CacheEvidence, Speed, ThreadEvidence
from verifier.runner.protocol import Array, Bundle, Result, Runner

LOAD_TIMEOUT_S = 600.0
LAST_TOKENS = 3
"""Positions that the filling prompt leaves free: a prefill, a token before the last, the last."""


@dataclass(frozen=True)
class ConversationBundle:
    """All golden conversations on one loaded program, the whole vocabulary behind them, `free` ones by image, and the first
    conversation once more at the end."""

    bundle: Bundle
    conversations: tuple[Conversation, ...]
    free: dict[str, Conversation]
    full: Conversation
    again: Conversation
    ranges: tuple[tuple[int, int], ...]
    vocabulary: tuple[int, ...]


def filling_prompt(prompt: Prompt, limit: int, patches: int) -> Prompt:
    """A prompt made longer in the middle of its text, so that it leaves `LAST_TOKENS` positions free; as it is if it is longer."""
    missing = limit - LAST_TOKENS - prompt.length(patches)
    middle = len(prompt.after) // 2
    words = tuple(prompt.after[middle : middle + 1]) * max(0, missing)
    return replace(prompt, after=(*prompt.after[:middle], *words, *prompt.after[middle:]))


def conversation_bundle(
    program: Declarations, caller: Caller, samples: list[Sample], *, patches: int, vocabulary: int, large: bool = False
) -> ConversationBundle:
    """Script every sample after the other: a program that remembers the last one fails here. Of a `large` model what is said about the
    same image again goes back to behind its tokens, which are still in the cache: they are a minute's work and more."""
    script = Script(caller)
    told: list[Conversation] = []
    ranges = []
    for sample in samples:
        first = len(script.calls)
        told.append(
            converse(script, image=sample.image, prompt=sample.prompt, answer=sample.golden.ids, patches=patches)
        )
        ranges.append((first, len(script.calls)))
    in_cache = samples[-1]

    def behind(sample: Sample) -> Conversation | None:
        nonlocal in_cache
        same, in_cache = in_cache is sample, sample
        return next(c for s, c in zip(samples, told, strict=True) if s is sample) if large and same else None

    embedded = vocabulary_calls(script, vocabulary=vocabulary)
    golden = {sample.golden.name: sample for sample in samples if sample.golden.kind != USER}
    freely = partial(converse_freely, script, patches=patches, limit=program.max_seq_len)
    free = {}
    for name in answered_freely(tuple(golden)):
        one = golden[name]
        free[name] = freely(image=one.image, prompt=one.prompt, tokens=len(one.golden.ids), behind=behind(one))
    head = samples[0]
    full = freely(
        image=head.image,
        prompt=filling_prompt(head.prompt, program.max_seq_len, patches),
        tokens=2 * LAST_TOKENS,
        behind=behind(head),
    )
    again = converse(
        script,
        image=head.image,
        prompt=head.prompt,
        answer=head.golden.ids,
        patches=patches,
        behind=behind(head),
    )
    bundle = Bundle(program.path, tuple(script.calls))
    return ConversationBundle(bundle, tuple(told), free, full, again, tuple(ranges), embedded)


Outputs = Mapping[int, Array]
"""By call, of those that returned."""


def logits_of(conversation: Conversation, outputs: Outputs) -> Array | None:
    """The logits of a conversation [T, V], one row before each answer token; None if a call did not return."""
    rows = [outputs.get(call) for call in conversation.logits]
    if any(row is None for row in rows):
        return None
    return np.concatenate([np.asarray(row).reshape(1, -1) for row in rows])


def collect_cases(
    made: ConversationBundle,
    result: Result | Missing,
    samples: Sequence[Sample],
    answers: Sequence[Answered],
    *,
    side_px: int,
) -> tuple[Case, ...]:
    """Pair the runtime's outputs with the references, whose hidden states are left out. The encoder's frame has `side_px`."""
    assert not isinstance(result, Missing), "answers need conversations"
    cases = []
    for sample, expected, conversation, (first, last) in zip(
        samples, answers, made.conversations, made.ranges, strict=True
    ):
        vision = result.outputs.get(conversation.vision)
        logits = logits_of(conversation, result.outputs)
        cases.append(
            Case(
                sample,
                replace(expected, hidden=None),
                None if vision is None else vision.reshape(-1, vision.shape[-1]),
                logits,
                made.bundle.calls[first:last],
                thumbnail(sample.image, side_px),
            )
        )
    return tuple(cases)


def vocabulary_of(made: ConversationBundle, result: Result | Missing) -> Array | None:
    """The embedding of every token id [V, D], None if a call did not return."""
    parts = [] if isinstance(result, Missing) else [result.outputs.get(call) for call in made.vocabulary]
    if not parts or any(part is None for part in parts):
        return None
    return np.concatenate([np.asarray(p).reshape(-1, np.asarray(p).shape[-1]) for p in parts])


def collect_runtime(
    made: ConversationBundle,
    result: Result | Missing,
    *,
    cache: CacheEvidence | Missing,
    threads: ThreadEvidence | Missing,
    speed: Speed | Missing,
) -> RuntimeEvidence:
    """What the runtime gave in the conversations, beside the probes. Where none was asked for, no call returned. Outputs that nothing is judged by,
    as the table of all tokens, are left out."""
    outputs: Outputs = {} if isinstance(result, Missing) else result.outputs
    return RuntimeEvidence(
        result if isinstance(result, Missing) else replace(result, outputs={}, further={}),
        FullAnswer(logits_of(made.full, outputs), made.full.position, LAST_TOKENS + 1),
        {name: logits_of(conversation, outputs) for name, conversation in made.free.items()},
        logits_of(made.again, outputs),
        cache,
        threads,
        speed,
    )


def run_bundle(runner: Runner, bundle: Bundle, *, per_call_s: float = 60.0) -> Result:
    """Run with a limit that grows with the work: a hang is found, a slow machine is not blamed."""
    return runner.run(bundle, timeout_s=LOAD_TIMEOUT_S + per_call_s * len(bundle.calls))
