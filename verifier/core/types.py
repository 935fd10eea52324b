"""Frozen records that pass between stages. No heavy imports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from verifier.core.errors import UsageError
from verifier.core.records import JsonObject

Step = Literal["mapping", "quantization", "lowering", "kernel", "device", "use"]
Verdict = Literal["pass", "fail", "error", "skipped"]
Quantizer = Literal["affine", "hqq", "affine-no-clipping", "affine-bf16"]
"""How the scale of a group is chosen. affine: its largest magnitude over 7.5. hqq: HQQ, scale only. affine-no-clipping: the largest positive number over 7, or
the largest negative one over 8. affine-bf16: affine, with the scale rounded to bf16 before the integers are made."""
Vision = Literal["int8", "fp32", "dynamic"]
EmbeddingBits = Literal[4, 8, 32]
EMBEDDING_GROUP = 32
STEP_MEANS: dict[Step, str] = {
    "mapping": "the eager model is not the checkpoint's: key map, preprocessing, prompt, positions",
    "quantization": "quantization costs more than this recipe should: scales, group size, calibration images",
    "lowering": "the file is not what the recipe makes of the checkpoint: export, passes, memory plan, changed bytes",
    "kernel": "the runtime does not compute what the file says: a kernel, threads, or memory of this build",
    "device": "the device computes something else than this machine: its kernels or CPU features",
    "use": "the app, or the runner inside it, asks otherwise than the checkpoint is asked: pixels, tokens, positions, cache, stop",
}
"""What a broken step means, in one line."""


@dataclass(frozen=True)
class Scheme:
    """How a weight became integers of `bits`: one scale, chosen by `quantizer`, for `group_size` input channels, or for a whole row if that is 0."""

    group_size: int
    quantizer: Quantizer = "affine"
    bits: int = 4

    def __str__(self) -> str:
        groups = f"groups of {self.group_size}" if self.group_size else "whole rows"
        return f"{self.bits}-bit integers of {groups} by {self.quantizer}"


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint becomes a `.pte`. Lengths in tokens; `group_size` along the input channels of a linear, that of the output head if it has
    groups of its own; `embedding_group_size` 0 for one scale a row; `vision` says how the tower's weights are stored: static int8, fp32, or
    integers of any bits that meet dynamically quantized rows, which this exporter does not make."""

    max_seq_len: int = 768
    max_context_len: int = 768
    group_size: int = 128
    quantizer: Quantizer = "affine"
    embedding_bits: EmbeddingBits = 8
    use_sdpa_with_kv_cache: bool = True
    static_image_shape: bool = False
    head_group_size: int = 0
    embedding_group_size: int = EMBEDDING_GROUP
    vision: Vision = "int8"

    def __post_init__(self) -> None:
        if self.group_size % 32 or not 32 <= self.group_size <= 1 << 14:
            raise UsageError(
                "the group size is not usable",
                got=self.group_size,
                expected="a multiple of 32 (XNNPACK's 4-bit kernels)",
                fix="give --group-size 32, 64, 128 or 256",
            )
        if not 1 < self.max_seq_len <= self.max_context_len <= 1 << 17:
            raise UsageError(
                "the lengths are not usable",
                got=f"max_seq_len {self.max_seq_len}, max_context_len {self.max_context_len}",
                expected="1 < max_seq_len <= max_context_len <= 131072",
                fix="give --max-seq-len and --max-context-len",
            )

    @property
    def name(self) -> str:
        """A short name that tells recipes apart: numerics depend on nothing else."""
        parts = [f"8da4w-g{self.group_size}", self.quantizer, f"e{self.embedding_bits}"]
        parts += [{"int8": "v8", "fp32": "v32", "dynamic": "v8da"}[self.vision]]
        parts += [f"head-g{self.head_group_size}"] if self.head_group_size else []
        parts += [] if self.embedding_group_size == EMBEDDING_GROUP else [f"embedding-g{self.embedding_group_size}"]
        parts += [] if self.use_sdpa_with_kv_cache else ["plain-sdpa"]
        parts += ["static-image"] if self.static_image_shape else []
        return "-".join(parts)

    @property
    def release(self) -> str:
        """A short name that tells apart what differs in size and speed, too."""
        return f"{self.name}-{self.max_seq_len}"

    @property
    def linears(self) -> Scheme:
        """Of the decoder's linears but the output head."""
        return Scheme(self.group_size, self.quantizer)

    @property
    def head(self) -> Scheme:
        """Of the output head."""
        return Scheme(self.head_group_size or self.group_size, self.quantizer)

    @property
    def embedding(self) -> Scheme:
        """Of the embedding table, where it is quantized."""
        return Scheme(self.embedding_group_size, self.quantizer, self.embedding_bits)

    def as_json(self) -> JsonObject:
        """The fields, for manifest and report."""
        return asdict(self)


@dataclass(frozen=True)
class Where:
    """A place in the program or in the data; what is not known is None."""

    method: str | None = None
    instruction: int | None = None
    module: str | None = None
    index: tuple[int, ...] | None = None


Segment = tuple[int, ...] | None
"""Token ids of a stretch of text, or None where an image goes."""


@dataclass(frozen=True)
class Prompt:
    """Token ids around an image; `before` begins with BOS if the tokenizer puts it there."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def length(self, patches: int) -> int:
        """Tokens in the KV-cache once everything is prefilled."""
        return len(self.before) + patches + len(self.after)


Culprit = Literal["program", "verifier", "unasked"]
"""Who is to blame where something is absent: the program under test, this verifier or what it was given, or nobody, as it was not asked for."""


@dataclass(frozen=True)
class Missing:
    """Why something is absent. Every case of a check that needs it fails if the `program` is to blame, and is an error otherwise."""

    reason: str
    culprit: Culprit
    where: Where | None = None
    accuses: str = ""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check on one case. `measured` and `allowed` share their keys; `exception` is a difference by design, with its
    cost, that stands in every report although the case passes. `accuses` says who is at fault where that is not what the table of
    `verifier.report.headline` says of the check: `calls` if a call of the program ended in an error, `graph` if a block was not located."""

    id: str
    step: Step
    case: str
    verdict: Verdict
    message: str
    measured: JsonObject = field(default_factory=dict)
    allowed: JsonObject = field(default_factory=dict)
    where: Where | None = None
    exception: str = ""
    accuses: str = ""
