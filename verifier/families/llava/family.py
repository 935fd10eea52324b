"""LLaVA-1.5 as a family: see `verifier.families.family.Family`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import Tensor

from verifier.core.records import JsonObject
from verifier.families.checkpoint import Checkpoint
from verifier.families.conventions import EXECUTORCH_LLAVA, Convention, Sizes
from verifier.families.definition import Decoder
from verifier.families.definition import Definition as Reference
from verifier.families.family import Parameter
from verifier.families.geometry import Geometry
from verifier.families.llava.definition import Definition, build_decoder, build_definition, embedding_table
from verifier.families.llava.derived import derived_constants
from verifier.families.llava.geometry import read_geometry
from verifier.families.llava.hugging_face import compare_samples
from verifier.families.llava.keymap import KeyMap, map_keys
from verifier.families.llava.parts import block_of, list_blocks, list_parameters, part_of, role_of
from verifier.families.llava.preprocess import LlavaPixels
from verifier.families.llava.prompt import PROMPT, LlavaPrompt
from verifier.families.samples import LayerPair, Sample
from verifier.families.streaming import ParameterHook, is_large


@dataclass(frozen=True)
class Llava:
    """A LLaVA-1.5 checkpoint, as programs of ExecuTorch's convention."""

    checkpoint: Checkpoint
    convention: Convention = EXECUTORCH_LLAVA

    @staticmethod
    def read_geometry(config: JsonObject) -> Geometry:
        """The sizes in config.json. Raises `CheckpointError` naming the field that is not LLaVA-1.5."""
        return read_geometry(config)

    @cached_property
    def keys(self) -> KeyMap:
        """The checkpoint's key of every parameter. Raises `CheckpointError` if the tensors are not those of config.json."""
        return map_keys(self.checkpoint.keys, self.checkpoint.geometry)

    @cached_property
    def large(self) -> bool:
        """Whether its layers are streamed."""
        return is_large(self.checkpoint)

    @property
    def patches(self) -> int:
        """Image tokens of one image, P."""
        return self.checkpoint.geometry.vision.patches

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors that LLaVA-1.5 carries and does not use: the last layers of the tower."""
        return tuple(sorted(self.keys.unused))

    @property
    def prompt(self) -> LlavaPrompt:
        """Vicuna's conversation."""
        return PROMPT

    @property
    def pixels(self) -> LlavaPixels:
        """CLIP's pictures, padded with black."""
        return LlavaPixels(self.checkpoint.geometry.vision.image_px)

    def sizes(self, longest: int) -> Sizes:
        """What signatures depend on."""
        vision, text = self.checkpoint.geometry.vision, self.checkpoint.geometry.text
        return Sizes(vision.image_px, vision.patches, text.width, text.vocabulary, longest)

    @cached_property
    def _parameters(self) -> tuple[Parameter, ...]:
        return list_parameters(self.keys)

    def parameters(self) -> tuple[Parameter, ...]:
        """Those of tower, projector, table and decoder."""
        return self._parameters

    def role_of(self, parameter: Parameter, rank: int) -> str:
        """What a constant that holds a parameter is used for."""
        return role_of(parameter, rank)

    def blocks(self) -> tuple[str, ...]:
        """The tower's layers, the table, attention and feed-forward of the decoder's layers, and what stands around them."""
        return list_blocks(self.checkpoint.geometry)

    def part_of(self, parameter: str) -> str:
        """Its layer's half, or what stands around the layers."""
        return part_of(parameter)

    def block_of(self, part: str) -> str:
        """The block that a part is judged with."""
        return block_of(part, self.checkpoint.geometry)

    def derived(self, role: str, method: str, shape: tuple[int, ...], *, order: int) -> list[tuple[Tensor, str]]:
        """What a constant that no tensor holds may be."""
        return derived_constants(self.checkpoint.geometry, role, method, shape, order=order)

    def definition(self, *, max_len: int) -> Definition:
        """The fp32 reference for sequences of at most `max_len` tokens."""
        return build_definition(self.checkpoint, max_len=max_len)

    def compare_with_hugging_face(self, definition: Reference, samples: Sequence[Sample]) -> Iterator[list[LayerPair]]:
        """With `LlavaForConditionalGeneration`; of a large checkpoint one decoder layer at a time."""
        return compare_samples(self.checkpoint, definition, samples, layer_by_layer=self.large)

    def embedding_table(self) -> Tensor:
        """[V, D] in fp32."""
        return embedding_table(self.checkpoint)

    def decoder(self, *, max_seq_len: int, max_context_len: int, on_module: ParameterHook | None = None) -> Decoder:
        """ExecuTorch's transformer, filled from the checkpoint; of a large one layer by layer."""
        made = build_decoder(
            self.checkpoint,
            max_seq_len=max_seq_len,
            max_context_len=max_context_len,
            on_module=on_module,
            streamed=self.large,
        )
        return cast(Decoder, made)  # ExecuTorch's Transformer has no types
