"""How the methods of a program are named and called: the calling conventions that are known, and how one is recognized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from verifier.artifact.program import Declarations, MethodFacts, TensorFacts
from verifier.core.errors import ArtifactError

ENCODER, EMBEDDING, DECODER = "vision_encoder", "token_embedding", "text_decoder"
ROLES = (ENCODER, EMBEDDING, DECODER)
"""What a method does, in the order of the computation. Parameters, blocks and reports are named by it."""


def module_of(parameter: str) -> str:
    """The module that owns a parameter: its name without `.weight` or `.bias`."""
    return parameter.removesuffix(".weight").removesuffix(".bias")


@dataclass(frozen=True)
class Signature:
    """What a method takes and returns, at the upper bounds of its sizes."""

    inputs: tuple[TensorFacts, ...]
    output: TensorFacts

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> ({self.output})"


@dataclass(frozen=True)
class Sizes:
    """What signatures depend on: side of an image in pixels, image tokens P, width D, vocabulary V, the longest sequence S."""

    side_px: int
    patches: int
    width: int
    vocabulary: int
    longest: int


@dataclass(frozen=True)
class Convention:
    """A way to call the methods of a program, as data that says who does what.

    `pixels`: `vision_encoder` takes "bytes", uint8 [3, h, w], and pads, scales and normalizes them itself; or pixels that the app has
    "normalized", fp32 [1, 3, H, H]. `positions`: `text_decoder` takes the position where a chunk "start"s, int64 [1], or that of "each" token,
    int64 [S]. `logits`: it returns those of the "last" token, [1, V], or of "all", [1, S, V].
    """

    name: str
    pixels: Literal["bytes", "normalized"]
    positions: Literal["start", "each"]
    logits: Literal["last", "all"]

    def signature(self, role: str, sizes: Sizes) -> Signature:
        """What the method of a role takes and returns. Sizes that are said to be dynamic here may be static in a file, which `fits`."""
        longest, width = sizes.longest, sizes.width
        if role == ENCODER:
            frame = (3, sizes.side_px, sizes.side_px)
            image = (
                TensorFacts("BYTE", frame, True) if self.pixels == "bytes" else TensorFacts("FLOAT", (1, *frame), False)
            )
            return Signature((image,), TensorFacts("FLOAT", (1, sizes.patches, width), False))
        embeddings = TensorFacts("FLOAT", (1, longest, width), True)
        if role == EMBEDDING:
            return Signature((TensorFacts("LONG", (1, longest), True),), embeddings)
        starts, last = self.positions == "start", self.logits == "last"
        position = TensorFacts("LONG", (1,), False) if starts else TensorFacts("LONG", (longest,), True)
        logits = (1, sizes.vocabulary) if last else (1, longest, sizes.vocabulary)
        return Signature((embeddings, position), TensorFacts("FLOAT", logits, not last))

    def fits(self, role: str, facts: MethodFacts) -> bool:
        """Whether a method is called so: as many dimensions, the dtypes of the inputs, and as many positions. Sizes are compared by
        `structure.signatures`: a wrong one is a fault, not another convention."""
        expected = self.signature(role, Sizes(1, 1, 1, 1, 1))
        inputs = [value for value in facts.inputs if isinstance(value, TensorFacts)]
        outputs = [value for value in facts.outputs if isinstance(value, TensorFacts)]
        if len(inputs) != len(facts.inputs) or len(outputs) != len(facts.outputs):
            return False
        if [(value.dtype, len(value.sizes)) for value in inputs] != [(v.dtype, len(v.sizes)) for v in expected.inputs]:
            return False
        if [len(value.sizes) for value in outputs] != [len(expected.output.sizes)]:
            return False
        one_position = inputs[-1].sizes == (1,) and not inputs[-1].dynamic
        return role != DECODER or one_position == (self.positions == "start")

    @property
    def shown(self) -> str:
        """Its signatures in words."""
        image = "BYTE[3, h, w]" if self.pixels == "bytes" else "FLOAT[1, 3, H, H] normalized"
        position = "LONG[1] position" if self.positions == "start" else "LONG[S] positions"
        logits = "FLOAT[1, V]" if self.logits == "last" else "FLOAT[1, S, V]"
        return (
            f"{ENCODER}({image}) -> FLOAT[1, P, D], {EMBEDDING}(LONG[1, S]) -> FLOAT[1, S, D], "
            f"{DECODER}(FLOAT[1, S, D], {position}) -> {logits}"
        )


EXECUTORCH_LLAVA = Convention("ExecuTorch's LLaVA", pixels="bytes", positions="start", logits="last")
"""Source: examples/models/llava/export_llava.py and extension/llm/runner of ExecuTorch 1.5.1."""
OPTIMUM = Convention("optimum-executorch's multimodal models", pixels="normalized", positions="each", logits="all")
"""Source: optimum/exporters/executorch/integrations.py of optimum-executorch 1.1.0, task multimodal-text-to-text."""
CONVENTIONS = (EXECUTORCH_LLAVA, OPTIMUM)


def recognize(artifact: Declarations) -> Convention:
    """The convention that a program is called by. Raises `ArtifactError` if it is none that is known: nothing can be said of what the
    program computes."""
    missing = [role for role in ROLES if role not in artifact.methods]
    if missing:
        raise ArtifactError(
            f"the program is not a LLaVA: no method {', '.join(missing)}",
            got=", ".join(sorted(artifact.methods)) or "no methods",
            expected=", ".join(ROLES),
            where=artifact.path,
            fix="export it with python -m verifier.export_llava",
        )
    known = next((one for one in CONVENTIONS if all(one.fits(role, artifact.methods[role]) for role in ROLES)), None)
    if known is not None:
        return known
    strange = [role for role in ROLES if not any(one.fits(role, artifact.methods[role]) for one in CONVENTIONS)]
    raise ArtifactError(
        f"the calling convention of {strange[0]} is not known"
        if strange
        else "the calling convention is not known: its methods belong to different ones",
        got="; ".join(f"{role}{_shown(artifact.methods[role])}" for role in strange[:1] or ROLES),
        expected="; or ".join(f"that of {one.name}: {one.shown}" for one in CONVENTIONS),
        where=artifact.path,
        fix="export with one of these, or add the convention to verifier/families/conventions.py; until then the program cannot be verified",
    )


def _shown(facts: MethodFacts) -> str:
    return f"({', '.join(map(str, facts.inputs))}) -> ({', '.join(map(str, facts.outputs))})"


def most_tokens(facts: MethodFacts) -> int | None:
    """How many tokens `token_embedding` or `text_decoder` takes in one call, S of its first input; None if that has no such dimension."""
    first = facts.inputs[0] if facts.inputs else None
    return first.sizes[1] if isinstance(first, TensorFacts) and len(first.sizes) > 1 else None


def text_piece(methods: Mapping[str, MethodFacts]) -> int:
    """How many tokens of text are embedded and decoded in one call each, at most: an app goes on in pieces of so many. 1 if a method does not
    say."""
    return min(most_tokens(methods[role]) or 1 for role in (EMBEDDING, DECODER))


def pieces(count: int, most: int) -> Iterator[int]:
    """Sizes of the calls that `count` tokens take, `most` a call."""
    for first in range(0, count, most):
        yield min(most, count - first)
