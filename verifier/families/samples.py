"""A picture with its prompt on the way into the models, and the fp32 answers to it: records, without a model."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.core.types import Prompt
from verifier.golden.records import GoldenImage
from verifier.runner.protocol import Array


@dataclass(frozen=True)
class Sample:
    """A golden image on its way in: pixels uint8 [3, h, w], prompt, and the answer that is forced.

    `pixels` are normalized ones [1, 3, H, H] that a reference takes in place of the image, None for the program's own.
    """

    golden: GoldenImage
    image: Array
    prompt: Prompt
    pixels: Array | None = None


@dataclass(frozen=True)
class Answered:
    """What a reference computes for a sample: image tokens [P, D], logits [T, V], and, if they are kept, normalized hidden states [T, D]."""

    vision: Array
    logits: Array
    hidden: Array | None = None

    @property
    def favoured(self) -> tuple[int, ...]:
        """The tokens that the logits favour, one for each row."""
        return tuple(int(token) for token in self.logits.argmax(-1))


@dataclass(frozen=True)
class LayerPair:
    """The same activation by the definition (actual) and by Hugging Face's model (expected), both in fp32."""

    name: str
    actual: Array
    expected: Array


@dataclass(frozen=True)
class PublishedAnswer:
    """A golden image framed by the checkpoint's own processor: SQNR of the program's image tokens against those in dB, None where they
    cannot be compared, and whether the fp32 model still favours every token of the golden answer."""

    name: str
    tokens_db: float | None
    same: bool
