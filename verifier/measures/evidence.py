"""Everything that checks look at, gathered once: declarations of the file, references, and what the runtime computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from verifier.audit.records import AuditRecords
from verifier.core.types import Missing, Recipe
from verifier.export.manifest import Manifest
from verifier.families.checkpoint import Checkpoint
from verifier.families.conventions import Convention, Signature
from verifier.families.geometry import Geometry
from verifier.families.samples import Answered, PublishedAnswer, Sample
from verifier.golden.bands import Tolerances
from verifier.golden.records import Budget, Expectation, GoldenOrigin
from verifier.ladder.evidence import LayerEvidence
from verifier.measures.against_fp32 import LayerError, VocabularyError
from verifier.measures.channels import ChannelError
from verifier.measures.eyes import EyesEvidence
from verifier.measures.pictures import PictureEvidence
from verifier.measures.probes import CacheEvidence, Speed, ThreadEvidence
from verifier.measures.program import ProgramFacts
from verifier.measures.prompts import PromptEvidence, TemplatePrompt
from verifier.measures.shipped import ShippedTokenizers
from verifier.measures.tokens import ImpliedMetadata, TokenFacts
from verifier.measures.use import UseEvidence
from verifier.runner.protocol import Array, Call, Result

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
    QUANTIZED_TOKENS = auto()
    """What the quantized model favours where the program's token is wrong: a second look."""
    PUBLISHED = auto()
    """Golden pictures framed by the checkpoint's own processor, answered by the definition."""
    MAPPING = auto()
    """Activations of Hugging Face's model and of the definition."""
    PIXELS = auto()
    """The pixels of the golden pictures and of the user's, behind the encoder's normalization."""
    DRAWN_PIXELS = auto()
    """The same of pictures that are drawn for it."""
    PICTURE_FILES = auto()
    """Small image files of every kind, read."""
    VOCABULARY = auto()
    """The program's embedding of every token."""
    CHANNELS = auto()
    """The decoder's last hidden state, recovered from its logits."""
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
    USE = auto()
    """The golden conversations and others with ExecuTorch's own runner."""
    EYES = auto()
    """Golden pictures by the paths of the apps, answered by the definition; the sizes that the program takes."""
    SPEED = auto()
    """Time and memory of a conversation, alone on the machine."""


RESTS_ON: dict[Part, tuple[Part, ...]] = {
    Part.TEMPLATE: (Part.PROMPTS,),
    Part.EYES: (Part.PROMPTS,),
    Part.INSTRUCTIONS: (Part.RUNTIME,),
    Part.CONVERSATIONS: (Part.RUNTIME, Part.PROMPTS),
    Part.QUANTIZED_TOKENS: (Part.CONVERSATIONS,),
    Part.PUBLISHED: (Part.CONVERSATIONS,),
    Part.VOCABULARY: (Part.CONVERSATIONS,),
    Part.CHANNELS: (Part.CONVERSATIONS,),
    Part.LAYERS: (Part.AUDIT, Part.RUNTIME, Part.PROMPTS),
    Part.CACHE: (Part.RUNTIME,),
    Part.CHUNKS: (Part.CACHE,),
    Part.THREADS: (Part.RUNTIME,),
    Part.USE: (Part.CONVERSATIONS,),
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

    `vision` [P, D]; `logits` [T, V], one row before each answer token; None where the runtime did not get there. `thumbnail` is the image for
    the report, JPEG in base64. `quantized`: the token that the eager quantized decoder favours, by its place in the answer, where the program's
    differs from the golden one by more than noise.
    """

    sample: Sample
    expected: Answered
    vision: Array | None
    logits: Array | None
    calls: tuple[Call, ...]
    thumbnail: str = ""
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
    """The run of the conversations without its outputs, and the probes, as they came back. `full` fills the cache. `free` are the logits [T, V] of free-running answers by
    image, and `again` those of the first conversation after all others; None where a call did not return."""

    conversations: Result | Missing
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
    """What checks may have cases of: names of the golden images, of the checkpoint's parameters, of the model's blocks, of the tokenizer files, of the
    apps that were named."""

    images: tuple[str, ...]
    parameters: tuple[str, ...]
    blocks: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Input of every check. `budget` is None if nobody recorded one."""

    program: ProgramFacts
    convention: Convention
    """How the program is called."""
    expected_signatures: dict[str, Signature]
    manifest: Manifest | None
    geometry: Geometry
    patches: int
    """Image tokens of one image."""
    tokens: TokenFacts
    prompts: PromptEvidence | Missing
    template: TemplatePrompt | Missing
    implied: ImpliedMetadata | Missing
    recipe: Recipe
    subjects: Subjects
    audit: AuditRecords | Missing
    layers: LayerEvidence | Missing
    expectation: Expectation | None
    tolerances: Tolerances | Missing
    budget: dict[str, Budget] | None
    cases: tuple[Case, ...]
    user_case: Case | None
    mapping: dict[str, tuple[LayerError, ...]]
    pictures: PictureEvidence
    vocabulary: VocabularyError | Missing
    channels: ChannelError | Missing
    runtime: RuntimeEvidence
    rounding_db: float | Missing
    """What rounding activations to int8 costs this checkpoint's decoder (SQNR, dB); measured only where a count of ties leaves a difference
    unexplained."""
    shipped: ShippedTokenizers | Missing
    use: UseEvidence | Missing
    published: tuple[PublishedAnswer, ...] = ()
    """Of some golden images that are not square: what the checkpoint's own processor makes the fp32 model say."""
    goldens: GoldenOrigin = field(default_factory=GoldenOrigin)
    """Where the golden answers came from."""
    eyes: EyesEvidence | Missing = field(default_factory=lambda: unasked("the apps' pictures"))
    prices: dict[str, float] = field(default_factory=dict)
    """What quantization may cost, by metric, where the user states it (`verifier.core.prices`)."""


def answered_freely(images: tuple[str, ...]) -> tuple[str, ...]:
    """The golden images whose answers are also run free: the first, the middle one, the last."""
    return tuple(images[i] for i in sorted({0, len(images) // 2, len(images) - 1}))


def golden_folder(checkpoint: Checkpoint) -> Path:
    """Golden data lies beside the weights it belongs to."""
    return checkpoint.directory
