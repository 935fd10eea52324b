"""Everything that checks look at, gathered once: declarations of the file, references, and what the runtime computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from pathlib import Path

from verifier.artifact.program import Artifact
from verifier.audit.run import Audit
from verifier.checkpoint import Checkpoint
from verifier.driver import Conversation, Script, converse, converse_freely, vocabulary_calls
from verifier.export.manifest import Manifest
from verifier.families.family import Family
from verifier.families.llava.definition import Definition
from verifier.families.llava.geometry import Geometry
from verifier.families.llava.prompt import Prompt
from verifier.golden.bands import Tolerances
from verifier.golden.records import Budget, Expectation, GoldenSet
from verifier.ladder.gather import LayerEvidence
from verifier.measures.prompts import PromptEvidence, TemplatePrompt
from verifier.measures.shipped import ShippedTokenizers
from verifier.measures.tokens import ImpliedMetadata, TokenFacts
from verifier.probes.kvcache import CacheEvidence
from verifier.probes.speed import Speed
from verifier.probes.threads import ThreadEvidence
from verifier.published import PublishedAnswer
from verifier.reference import (
    Answered,
    LayerPair,
    Sample,
    compare_layer_by_layer,
    compare_with_hugging_face,
    load_hugging_face,
)
from verifier.runner.protocol import Array, Bundle, Call, Result, Runner
from verifier.types import Missing, Recipe

MAPPING_SAMPLES = 2
LOAD_TIMEOUT_S = 600.0
LAST_TOKENS = 3
"""Positions that the filling prompt leaves free: a prefill, a token before the last, the last."""
USER = "user"
"""Kind of the image that a user gives; all others are golden."""


class Part(Enum):
    """What is gathered only if a check needs it."""

    PROMPTS = auto()
    """That the tokenizer agrees with transformers'; gathering ends if it does not. Prompts and their reference ids."""
    TEMPLATE = auto()
    """The prompt that the checkpoint's chat template spells."""
    METADATA = auto()
    """What checkpoint and recipe imply of the metadata methods."""
    RUNTIME = auto()
    """What the runtime says of itself and of its machine."""
    INSTRUCTIONS = auto()
    """Which microkernels the machine chooses: a few calls are made."""
    CONVERSATIONS = auto()
    """The golden conversations, by the fp32 definition and by the program."""
    PUBLISHED = auto()
    """Golden pictures framed by the checkpoint's own processor, answered by the definition."""
    MAPPING = auto()
    """Activations of Hugging Face's model and of the definition."""
    AUDIT = auto()
    """The constants of the file against the checkpoint."""
    LAYERS = auto()
    """A traced conversation, instruction by instruction."""
    CACHE = auto()
    """Histories, poison and rows of the KV-cache."""
    CHUNKS = auto()
    """The whole cache in chunks and token by token, and what lies beyond its end."""
    THREADS = auto()
    """The same calls repeated, with several thread counts."""
    TOKENIZERS = auto()
    """The tokenizer files that ship, read by ExecuTorch's tokenizers."""
    SPEED = auto()
    """Time and memory of a conversation, alone on the machine."""


RESTS_ON: dict[Part, tuple[Part, ...]] = {
    Part.TEMPLATE: (Part.PROMPTS,),
    Part.INSTRUCTIONS: (Part.RUNTIME,),
    Part.CONVERSATIONS: (Part.RUNTIME, Part.PROMPTS),
    Part.PUBLISHED: (Part.CONVERSATIONS,),
    Part.LAYERS: (Part.AUDIT, Part.RUNTIME, Part.PROMPTS),
    Part.CACHE: (Part.RUNTIME,),
    Part.CHUNKS: (Part.CACHE,),
    Part.THREADS: (Part.RUNTIME,),
}
"""Parts that a part cannot be gathered without."""


def with_foundations(parts: Iterable[Part]) -> frozenset[Part]:
    """Some parts and all that they rest on."""
    found: set[Part] = set()
    open_ones = list(parts)
    while open_ones:
        part = open_ones.pop()
        if part not in found:
            found.add(part)
            open_ones += RESTS_ON.get(part, ())
    return frozenset(found)


def unasked(what: str) -> Missing:
    """No check asked for it."""
    return Missing(f"no check asked for {what}", "unasked")


@dataclass(frozen=True)
class Case:
    """One golden image, both ways: the fp32 definition and, where its calls returned, the runtime.

    `vision` [P, D]; `logits` [T, V], one row before each answer token; None where the runtime did not get there. `quantized`: the token that the
    eager quantized decoder favours, by its place in the answer, where the program's differs from the golden one by more than noise.
    """

    sample: Sample
    expected: Answered
    vision: Array | None
    logits: Array | None
    calls: tuple[Call, ...]
    quantized: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FullAnswer:
    """A free answer to a prompt that leaves `room` logits in the cache: logits [room, V], None if a call did not return, and the
    first position that was not used."""

    logits: Array | None
    position: int
    room: int


@dataclass(frozen=True)
class RuntimeEvidence:
    """The conversation bundle and the probes, as they came back. `free` are the logits [T, V] of free-running answers by
    image, and `again` those of the first conversation after all others; None where a call did not return."""

    conversations: Result | Missing
    vocabulary: Array | None
    full: FullAnswer
    free: dict[str, Array | None]
    again: Array | None
    cache: CacheEvidence | Missing
    threads: ThreadEvidence | Missing
    speed: Speed | Missing

    @property
    def message(self) -> str:
        """What the run of the conversations said at its end, or why there was none."""
        ran = self.conversations
        return ran.reason if isinstance(ran, Missing) else ran.message


@dataclass(frozen=True)
class Subjects:
    """What checks may have cases of: names of the golden images, of the checkpoint's parameters, of the model's blocks, of the tokenizer files."""

    images: tuple[str, ...]
    parameters: tuple[str, ...]
    blocks: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Input of every check. `budget` is None if nobody recorded one."""

    artifact: Artifact
    manifest: Manifest | None
    checkpoint: Checkpoint
    geometry: Geometry
    family: Family
    definition: Definition
    tokens: TokenFacts
    prompts: PromptEvidence | Missing
    template: TemplatePrompt | Missing
    implied: ImpliedMetadata | Missing
    recipe: Recipe
    subjects: Subjects
    audit: Audit | Missing
    layers: LayerEvidence | Missing
    golden: GoldenSet
    expectation: Expectation | None
    tolerances: Tolerances | Missing
    budget: dict[str, Budget] | None
    cases: tuple[Case, ...]
    user_case: Case | None
    mapping: dict[str, list[LayerPair]]
    runtime: RuntimeEvidence
    rounding_db: float | Missing
    """What rounding activations to int8 costs this checkpoint's decoder (SQNR, dB); measured only where a count of ties leaves a difference
    unexplained."""
    shipped: ShippedTokenizers | Missing
    published: tuple[PublishedAnswer, ...] = ()
    """Of some golden images that are not square: what the checkpoint's own processor makes the fp32 model say."""

    @property
    def patches(self) -> int:
        """Image tokens of one image."""
        return self.family.patches


def mapping_pairs(family: Family, definition: Definition, samples: list[Sample]) -> dict[str, list[LayerPair]]:
    """Activations of Hugging Face and of the definition for a few samples, for one if the model is large."""
    checkpoint = family.checkpoint
    if family.large:
        return {s.golden.name: compare_layer_by_layer(checkpoint, definition, s) for s in samples[:1]}
    model = load_hugging_face(checkpoint)
    return {s.golden.name: compare_with_hugging_face(model, definition, s) for s in samples[:MAPPING_SAMPLES]}


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


def answered_freely(images: tuple[str, ...]) -> tuple[str, ...]:
    """The golden images whose answers are also run free: the first, the middle one, the last."""
    return tuple(images[i] for i in sorted({0, len(images) // 2, len(images) - 1}))


def filling_prompt(prompt: Prompt, limit: int, patches: int) -> Prompt:
    """A prompt made longer in the middle of its text, so that it leaves `LAST_TOKENS` positions free; as it is if it is longer."""
    missing = limit - LAST_TOKENS - prompt.length(patches)
    middle = len(prompt.after) // 2
    words = tuple(prompt.after[middle : middle + 1]) * max(0, missing)
    return replace(prompt, after=(*prompt.after[:middle], *words, *prompt.after[middle:]))


def conversation_bundle(
    artifact: Artifact, samples: list[Sample], *, patches: int, vocabulary: int, large: bool = False
) -> ConversationBundle:
    """Script every sample after the other: a program that remembers the last one fails here. Of a `large` model what is said about the
    same image again goes back to behind its tokens, which are still in the cache: they are a minute's work and more."""
    script = Script()
    told: list[Conversation] = []
    ranges = []
    for sample in samples:
        first = len(script.calls)
        told.append(
            converse(
                script, image=sample.image.numpy(), prompt=sample.prompt, answer=sample.golden.ids, patches=patches
            )
        )
        ranges.append((first, len(script.calls)))
    in_cache = samples[-1]

    def behind(sample: Sample) -> Conversation | None:
        nonlocal in_cache
        same, in_cache = in_cache is sample, sample
        return next(c for s, c in zip(samples, told, strict=True) if s is sample) if large and same else None

    embedded = vocabulary_calls(script, vocabulary=vocabulary, max_seq_len=artifact.max_seq_len)
    golden = {sample.golden.name: sample for sample in samples if sample.golden.kind != USER}
    freely = partial(converse_freely, script, patches=patches, limit=artifact.max_seq_len)
    free = {}
    for name in answered_freely(tuple(golden)):
        one = golden[name]
        free[name] = freely(image=one.image.numpy(), prompt=one.prompt, tokens=len(one.golden.ids), behind=behind(one))
    head = samples[0]
    full = freely(
        image=head.image.numpy(),
        prompt=filling_prompt(head.prompt, artifact.max_seq_len, patches),
        tokens=2 * LAST_TOKENS,
        behind=behind(head),
    )
    again = converse(
        script,
        image=head.image.numpy(),
        prompt=head.prompt,
        answer=head.golden.ids,
        patches=patches,
        behind=behind(head),
    )
    bundle = Bundle(artifact.path, tuple(script.calls))
    return ConversationBundle(bundle, tuple(told), free, full, again, tuple(ranges), embedded)


Outputs = Mapping[int, Array]
"""By call, of those that returned."""


def logits_of(conversation: Conversation, outputs: Outputs) -> Array | None:
    """The logits of a conversation [T, V], one row before each answer token; None if a call did not return."""
    import numpy as np

    rows = [outputs.get(call) for call in conversation.logits]
    if any(row is None for row in rows):
        return None
    return np.concatenate([np.asarray(row).reshape(1, -1) for row in rows])


def collect_cases(
    made: ConversationBundle, result: Result | Missing, samples: list[Sample], answers: list[Answered]
) -> tuple[Case, ...]:
    """Pair the runtime's outputs with the references."""
    assert not isinstance(result, Missing), "who asks for answers asks for conversations"
    cases = []
    for sample, expected, conversation, (first, last) in zip(
        samples, answers, made.conversations, made.ranges, strict=True
    ):
        vision = result.outputs.get(conversation.vision)
        logits = logits_of(conversation, result.outputs)
        cases.append(
            Case(
                sample,
                expected,
                None if vision is None else vision.reshape(-1, vision.shape[-1]),
                logits,
                made.bundle.calls[first:last],
            )
        )
    return tuple(cases)


def _vocabulary(made: ConversationBundle, outputs: Outputs) -> Array | None:
    """The embedding of every token id [V, D], None if a call did not return."""
    import numpy as np

    parts = [outputs.get(call) for call in made.vocabulary]
    if any(part is None for part in parts):
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
    """What the runtime gave in the conversations, beside the probes. Where none was asked for, no call returned."""
    outputs: Outputs = {} if isinstance(result, Missing) else result.outputs
    return RuntimeEvidence(
        result,
        _vocabulary(made, outputs),
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


def golden_folder(checkpoint: Checkpoint) -> Path:
    """Golden data lies beside the weights it belongs to."""
    return checkpoint.directory
