"""What is particular to a model family: built once, when a request is opened, and asked from there on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image
from torch import Tensor

from verifier.core.records import JsonObject
from verifier.families.checkpoint import Checkpoint
from verifier.families.conventions import Convention, Sizes, module_of
from verifier.families.definition import Decoder, Definition
from verifier.families.geometry import Geometry
from verifier.families.prompts import PromptFormat
from verifier.families.samples import LayerPair, Sample
from verifier.families.streaming import ParameterHook


@dataclass(frozen=True)
class Parameter:
    """A parameter of the definition: `name` with its method in front, its checkpoint key, its place in the computation as (layer, stage)."""

    name: str
    key: str
    order: tuple[int, int]

    @property
    def module(self) -> str:
        """The module that owns it."""
        return module_of(self.name)


class PixelFormat(Protocol):
    """Pictures on their way into a program of a family."""

    @property
    def side_px(self) -> int:
        """The side H of the square that a picture is framed in."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """What the program takes off red, green and blue, from 0 to 1."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """What it divides them by."""
        ...

    def prepare(self, image: Image, *, square: bool = False) -> Tensor:
        """A picture as programs take it, uint8 [3, h, w]; `square` for one that takes no other pictures. Raises `ImageError`."""
        ...


class Family(Protocol):
    """A checkpoint of a model family, and how a program of it is called."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights and their configuration."""
        ...

    @property
    def convention(self) -> Convention:
        """How its methods are called."""
        ...

    @property
    def large(self) -> bool:
        """Whether its decoder is streamed layer by layer, and asked less."""
        ...

    @property
    def patches(self) -> int:
        """Image tokens of one image, P."""
        ...

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys of the checkpoint that no program of the family holds."""
        ...

    @property
    def prompt(self) -> PromptFormat:
        """How a conversation is spelled."""
        ...

    @property
    def pixels(self) -> PixelFormat:
        """How pictures go in."""
        ...

    def sizes(self, longest: int) -> Sizes:
        """What the signatures of its methods depend on, for programs of at most `longest` tokens."""
        ...

    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter that reaches a program, in the order in which it is used."""
        ...

    def blocks(self) -> tuple[str, ...]:
        """Blocks of the model in the order of the computation: the cases of the checks layer by layer."""
        ...

    def part_of(self, parameter: str) -> str:
        """The part of the model that holds a parameter, by which instructions are named."""
        ...

    def block_of(self, part: str) -> str:
        """The block that a part is judged with."""
        ...

    def role_of(self, parameter: Parameter, rank: int) -> str:
        """What a constant that holds a parameter is used for; `rank` is that of its tensor."""
        ...

    def derived(self, role: str, method: str, shape: tuple[int, ...], *, order: int) -> list[tuple[Tensor, str]]:
        """What a constant that no tensor of the checkpoint holds may be, with as many elements as its `shape`, and what that is in words; nothing for a
        role that nothing explains. `order` is its number among the constants of its role."""
        ...

    def definition(self, *, max_len: int) -> Definition:
        """The fp32 reference for sequences of at most `max_len` tokens."""
        ...

    def compare_with_hugging_face(self, definition: Definition, samples: Sequence[Sample]) -> Iterator[list[LayerPair]]:
        """Image tokens, the output of every decoder layer, and logits of each sample, by the definition and by Hugging Face's own model of
        the checkpoint. Raises `CheckpointError`."""
        ...

    def embedding_table(self) -> Tensor:
        """The token embedding in fp32, [V, D]."""
        ...

    def decoder(self, *, max_seq_len: int, max_context_len: int, on_module: ParameterHook | None = None) -> Decoder:
        """The decoder in fp32; `on_module` may replace weights as they arrive."""
        ...


class Kind(Protocol):
    """A family as the registry has it: what reads a configuration, and builds the family of a checkpoint."""

    def __call__(self, checkpoint: Checkpoint, convention: Convention) -> Family:
        """The family of a checkpoint, with programs of a convention."""
        ...

    def read_geometry(self, config: JsonObject) -> Geometry:
        """The sizes that config.json gives. Raises `CheckpointError` for a field that the definition cannot honour."""
        ...
