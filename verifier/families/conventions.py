"""How the methods of a program are named and called: the calling conventions that are known, and how one is recognized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from verifier.artifact.program import Artifact, MethodFacts, TensorFacts
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
    """A way to call the methods of a program.

    `ranks` are the dimensions of the inputs and of the output of each role, by which a convention is recognized; a wrong dtype or size within
    it is a fault, which `structure.signatures` finds. `signature` gives the exact ones.
    """

    name: str
    ranks: Mapping[str, tuple[tuple[int, ...], int]]
    signature: Callable[[str, Sizes], Signature]
    shown: str

    def require(self, artifact: Artifact) -> None:
        """Raise `ArtifactError` for a program that is called in another way: nothing can be said of what it computes."""
        missing = [role for role in self.ranks if role not in artifact.methods]
        if missing:
            raise ArtifactError(
                f"the program is not a LLaVA: no method {', '.join(missing)}",
                got=", ".join(sorted(artifact.methods)) or "no methods",
                expected=", ".join(self.ranks),
                where=artifact.path,
                fix="export it with python -m verifier.export_llava",
            )
        for role in self.ranks:
            if not self._fits(role, artifact.methods[role]):
                facts = artifact.methods[role]
                raise ArtifactError(
                    f"the calling convention of {role} is not known",
                    got=f"({', '.join(map(str, facts.inputs))}) -> ({', '.join(map(str, facts.outputs))})",
                    expected=f"that of {self.name}: {self.shown}",
                    where=artifact.path,
                    fix="export with python -m verifier.export_llava or ExecuTorch's own export_llava; other exporters' programs cannot be verified",
                )

    def _fits(self, role: str, facts: MethodFacts) -> bool:
        inputs, output = self.ranks[role]
        ranks = tuple(len(value.sizes) if isinstance(value, TensorFacts) else -1 for value in facts.inputs)
        outputs = tuple(len(value.sizes) if isinstance(value, TensorFacts) else -1 for value in facts.outputs)
        position = facts.inputs[-1] if facts.inputs else None
        one_position = isinstance(position, TensorFacts) and position.sizes == (1,) and not position.dynamic
        return ranks == inputs and outputs == (output,) and (role != DECODER or one_position)


def _executorch_llava(role: str, sizes: Sizes) -> Signature:
    longest, width = sizes.longest, sizes.width
    return {
        ENCODER: Signature(
            (TensorFacts("BYTE", (3, sizes.side_px, sizes.side_px), True),),
            TensorFacts("FLOAT", (1, sizes.patches, width), False),
        ),
        EMBEDDING: Signature(
            (TensorFacts("LONG", (1, longest), True),),
            TensorFacts("FLOAT", (1, longest, width), True),
        ),
        DECODER: Signature(
            (TensorFacts("FLOAT", (1, longest, width), True), TensorFacts("LONG", (1,), False)),
            TensorFacts("FLOAT", (1, sizes.vocabulary), False),
        ),
    }[role]


EXECUTORCH_LLAVA = Convention(
    "ExecuTorch's LLaVA",
    {ENCODER: ((3,), 3), EMBEDDING: ((2,), 3), DECODER: ((3, 1), 2)},
    _executorch_llava,
    f"{ENCODER}(BYTE[3, h, w]) -> FLOAT[1, P, D], {EMBEDDING}(LONG[1, S]) -> FLOAT[1, S, D], "
    f"{DECODER}(FLOAT[1, S, D], LONG[1] position) -> FLOAT[1, V]",
)
"""Source: examples/models/llava/export_llava.py and extension/llm/runner of ExecuTorch 1.5.1."""
CONVENTIONS = (EXECUTORCH_LLAVA,)


def recognize(artifact: Artifact) -> Convention:
    """The convention that a program is called by. Raises `ArtifactError` if it is none that is known, with what the first one lacks."""
    refusals = []
    for convention in CONVENTIONS:
        try:
            convention.require(artifact)
        except ArtifactError as error:
            refusals.append(error)
        else:
            return convention
    raise refusals[0]
