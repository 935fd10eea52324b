"""Blocks of the model against the program: what each adds to the residual stream, on the program's own input to it.

The stream is found where a norm reads it. A block of the decoder is held against the `quantized` rung, where only rounding
ties may differ; layers of the encoder of images are in `verifier.ladder.tower_blocks`. The same streams, held against the fp32 model run from
the first token on, give the profile of error over depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.artifact.plan import Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.audit.run import Audit
from verifier.core.compare import Difference, Mismatch, compare
from verifier.core.progress import OnProgress, no_progress
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.definition import Decoder, Definition
from verifier.ladder.evidence import BlockError
from verifier.ladder.limits import block_limit_db, tipped_limit_db
from verifier.ladder.quantized import Rounding
from verifier.ladder.replay import Tapped


@dataclass(frozen=True)
class Taps:
    """EValues of the residual stream: `reads` maps a norm's name to the EValue it reads, `results` a method to its output."""

    reads: dict[str, int]
    results: dict[str, int]

    def watched(self) -> frozenset[tuple[str, int]]:
        """Method and EValue of everything to tap."""
        found = {(name.partition(".")[0], index) for name, index in self.reads.items()}
        return frozenset(found | set(self.results.items()))

    def read_by(self, norm: str, tapped: Tapped, call: int) -> Tensor | None:
        """The stream as the runtime had it when a norm read it; None if it was not tapped."""
        index = self.reads.get(norm)
        return None if index is None else tapped.get((call, index))

    def result(self, method: str, tapped: Tapped, call: int) -> Tensor | None:
        """The method's output as the runtime gave it; None if it was not tapped."""
        return tapped.get((call, self.results[method]))


@dataclass(frozen=True)
class TracedCall:
    """A call as it was replayed, with its output. `start` is its position, for the decoder. `sample` names the image of the
    conversation."""

    method: str
    inputs: tuple[Tensor, ...]
    sample: str
    output: Tensor
    start: int = 0


def find_taps(artifact: Artifact, audit: Audit) -> Taps:
    """The EValues that norms read, by the norm's name such as `text_decoder.layers.0.ffn_norm`, and the methods' results."""
    reads: dict[str, int] = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is None or constant.role != "norm weight":
            continue
        plan = artifact.plans[constant.method]
        index = _stream(plan, plan.instructions[constant.instruction].args, constant.shape[-1])
        if index is not None:
            reads[parameter.module] = index
    results = {method: artifact.plans[method].outputs[0] for method in (ENCODER, DECODER)}
    return Taps(reads, results)


def _stream(plan: Plan, arguments: Sequence[int], width: int) -> int | None:
    for index in arguments:
        value = plan.values[index]
        if (
            isinstance(value, TensorValue)
            and value.constant is None
            and len(value.sizes) > 1
            and value.sizes[-1] == width
        ):
            return index
    return None


def added_error(block: str, part: str, call: int, before: Tensor, actual: Tensor, expected: Tensor) -> BlockError:  # noqa: PLR0917
    """What a block adds to the stream before it: nothing is subtracted of what has another shape."""
    elements = before.numel() if before.dim() else actual.numel()
    made = _difference(before, actual, expected)
    if isinstance(made, Mismatch):
        fed = bool(before.isfinite().all())
        return BlockError(block, part, call, math.nan, elements, reason=_said(made.reason), fed=fed)
    return BlockError(block, part, call, made.sqnr_db, elements)


def _difference(before: Tensor, actual: Tensor, expected: Tensor) -> Difference | Mismatch:
    if actual.shape != expected.shape or (before.dim() and before.shape != actual.shape):
        return Mismatch(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    a, e = ((x - before).double().numpy() for x in (actual, expected))
    return compare(actual=a, expected=e)


def _said(reason: str) -> str:
    return reason.replace(" in actual", " in what the program adds").replace(" in expected", " in what the model adds")


class DecoderBlocks:
    """The decoder, block by block over the calls of conversations; keeps the reference's own KV-cache."""

    def __init__(self, decoder: Decoder, rounding: Rounding, taps: Taps, layers: int) -> None:
        self.decoder, self.rounding, self.taps, self.layers = decoder, rounding, taps, layers

    def compare(
        self, calls: Sequence[TracedCall], tapped: Tapped, on_progress: OnProgress = no_progress
    ) -> list[BlockError]:
        """Errors of all blocks, call by call; a stream that was not tapped leaves its blocks out.

        Layer by layer over all calls, so that a streamed layer is read once.
        """
        found: list[BlockError] = []
        own = [(number, call) for number, call in enumerate(calls) if call.method == DECODER]
        with torch.no_grad():
            for layer in range(self.layers):
                on_progress("layers of the quantized model", layer, self.layers)
                found += self._layer(layer, own, tapped)
            for number, _ in own:
                found += self._output(number, tapped)
        return sorted(found, key=lambda error: error.call)

    def _layer(self, index: int, calls: list[tuple[int, TracedCall]], tapped: Tapped) -> list[BlockError]:
        """Both blocks of a layer in all calls. What rounding ties may cost is asked only if more is missing than they cost by themselves."""
        ready = [self._streams(index, number, call, tapped) for number, call in calls]
        streams = [each for each in ready if each is not None]
        made = [self._blocks(index, each) for each in streams]
        found = [error for each, own in zip(streams, made, strict=True) for error in each.errors(own)]
        if all(error.holds for error in found):
            return found
        with self.rounding.flip_ties():
            # in the order of the calls, so that the cache holds what calls with flipped ties wrote
            flipped = [self._blocks(index, each) for each in streams]
        costs = [cost for each, *both in zip(streams, flipped, made, strict=True) for cost in each.costs(*both)]
        return [
            error if error.holds else replace(error, limit_db=tipped_limit_db(error.elements, cost))
            for error, cost in zip(found, costs, strict=True)
        ]

    def _streams(self, index: int, number: int, call: TracedCall, tapped: Tapped) -> _Streams | None:
        name = f"{DECODER}.layers.{index}"
        before, middle = (
            self.taps.read_by(f"{name}.{norm}", tapped, number) for norm in ("attention_norm", "ffn_norm")
        )
        after = self._after(tapped, number, index)
        if before is None or middle is None or after is None:
            return None
        return _Streams(name, number, call.start, before, middle, after)

    def _blocks(self, index: int, streams: _Streams) -> tuple[Tensor, Tensor]:
        """The stream behind the attention and behind the feed-forward block, each from the program's own before it."""
        layer, before, middle = self.decoder.layers[index], streams.before, streams.middle
        position = torch.tensor([streams.start])
        cos, sin = self.decoder.rope.get_freqs(position, before.shape[1])
        mixed, _ = layer.attention(layer.attention_norm(before), cos, sin, input_pos=position)
        made = middle + layer.feed_forward(layer.ffn_norm(middle))
        return before + mixed, made[:, -streams.after.shape[1] :]

    def _output(self, number: int, tapped: Tapped) -> list[BlockError]:
        last = self.taps.read_by(f"{DECODER}.norm", tapped, number)
        logits = self.taps.result(DECODER, tapped, number)
        if last is None or logits is None:
            return []
        rows = logits.reshape(-1, logits.shape[-1])  # of all tokens, or of the last
        expected = self.decoder.output(self.decoder.norm(last.reshape(-1, last.shape[-1])[-len(rows) :]))
        error = added_error(f"{DECODER}.output", "output", number, torch.zeros(()), rows, expected)
        return [replace(error, limit_db=block_limit_db(error.elements))]

    def _after(self, tapped: Tapped, number: int, layer: int) -> Tensor | None:
        """The stream behind a layer: what the next norm reads; the final one may read the last token alone."""
        if layer + 1 < self.layers:
            return self.taps.read_by(f"{DECODER}.layers.{layer + 1}.attention_norm", tapped, number)
        last = self.taps.read_by(f"{DECODER}.norm", tapped, number)
        return None if last is None else last.reshape(1, -1, last.shape[-1])


@dataclass(frozen=True)
class _Streams:
    """The stream of one layer in one call as the runtime had it: before the layer, between its blocks, and behind it."""

    name: str
    number: int
    start: int
    before: Tensor
    middle: Tensor
    after: Tensor

    def errors(self, made: tuple[Tensor, Tensor]) -> list[BlockError]:
        """The runtime against what was made of its streams, with the limit that holds whatever ties there are."""
        own = (self.middle, self.after)
        return [replace(error, limit_db=block_limit_db(error.elements)) for error in self._pair(own, made)]

    def costs(self, flipped: tuple[Tensor, Tensor], straight: tuple[Tensor, Tensor]) -> list[float]:
        """SQNR in dB that is left of both blocks when all ties are flipped."""
        return [error.sqnr_db for error in self._pair(flipped, straight)]

    def _pair(self, actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> list[BlockError]:
        befores = (self.before, self.middle[:, -self.after.shape[1] :])
        return [
            added_error(f"{self.name}.{part}", part, self.number, before, a, e)
            for part, before, a, e in zip(("attention", "feed_forward"), befores, actual, expected, strict=True)
        ]


def profile(definition: Definition, taps: Taps, calls: Sequence[TracedCall], tapped: Tapped) -> list[BlockError]:
    """SQNR of the residual stream behind every block against fp32 run end to end: how the error grows with depth."""
    found: list[BlockError] = []
    vision: dict[str, Tensor] = {}
    for number, call in enumerate(calls):
        if call.method == ENCODER:
            vision[call.sample] = definition.image_tokens(call.inputs[0])
            found += [replace(e, sample=call.sample) for e in _vision_profile(definition, taps, number, call, tapped)]
    return found + _text_profile(definition, taps, calls, tapped, vision)


def _vision_profile(
    definition: Definition, taps: Taps, number: int, call: TracedCall, tapped: Tapped
) -> list[BlockError]:
    encoder, found = definition.encoder, []
    layers = encoder.blocks
    with torch.no_grad():
        x = encoder.embedded(call.inputs[0])
        for index, layer in enumerate(layers):
            x = layer.feed_forward(layer.attention(x))
            if index + 1 < len(layers):
                expected, actual = x, taps.read_by(f"{ENCODER}.{layers[index + 1].norms[0]}", tapped, number)
            else:
                expected, actual = encoder.project(x), taps.result(ENCODER, tapped, number)
            if actual is not None:
                block = f"{ENCODER}.layers.{index}"
                found.append(added_error(block, "profile", number, torch.zeros(()), actual, expected))
    return found


def _text_profile(
    definition: Definition, taps: Taps, calls: Sequence[TracedCall], tapped: Tapped, vision: dict[str, Tensor]
) -> list[BlockError]:
    """The decoder's calls of all conversations; an image chunk is fed with the fp32 image tokens of its sample."""
    fed = list(_decoder_inputs(definition, calls, vision))
    layers = len(definition.decoder.layers)
    found: list[BlockError] = []

    def observe(place: int, index: int, expected: Tensor) -> None:
        number, name = fed[place][0], f"layers.{index + 1}.attention_norm" if index + 1 < layers else "norm"
        actual = taps.read_by(f"{DECODER}.{name}", tapped, number)
        if actual is not None:
            actual = actual.reshape(1, -1, actual.shape[-1])
            block = f"{DECODER}.layers.{index}.feed_forward"
            behind = expected[:, -actual.shape[1] :]
            error = added_error(block, "profile", number, torch.zeros(()), actual, behind)
            made = compare(actual=actual.numpy(), expected=behind.numpy())
            rows = tuple(made.row_sqnr_db.tolist()) if isinstance(made, Difference) else ()
            start = calls[number].start + expected.shape[1] - behind.shape[1]
            found.append(replace(error, sample=calls[number].sample, rows_db=rows, start=start))

    definition.hidden_each([x for _, x in fed], starts=[calls[number].start for number, _ in fed], observe=observe)
    return sorted(found, key=lambda error: error.call)


def _decoder_inputs(
    definition: Definition, calls: Sequence[TracedCall], vision: dict[str, Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Number and fp32 input of every call of the decoder."""
    ids: Tensor | None = None
    for number, call in enumerate(calls):
        if call.method == EMBEDDING:
            ids = call.inputs[0]
        if call.method == DECODER:
            yield number, vision[call.sample] if ids is None else definition.embed(ids)
            ids = None


def error_shares(definition: Definition, quantized: Decoder, embeddings: Tensor) -> dict[str, float]:
    """How much each decoder layer's quantization contributes to the error of the last logits: shares that add up to 1.

    `embeddings` [1, S, D] run through the fp32 decoder with one layer at a time replaced by its quantized counterpart. Errors
    of layers are nearly independent, so their powers add up. All variants go through a layer together.
    """
    decoder, position = definition.decoder, torch.tensor([0])
    blocks = [f"{DECODER}.layers.{number}.feed_forward" for number in range(len(decoder.layers))]
    with torch.no_grad():
        cos, sin = decoder.rope.get_freqs(position, embeddings.shape[1])
        right, variants = embeddings, list[Tensor]()
        for number, layer in enumerate(decoder.layers):
            wrong, _ = quantized.layers[number](right, cos, sin, {"input_pos": position})
            right, *variants = (layer(x, cos, sin, {"input_pos": position})[0] for x in (right, *variants))
            variants.append(wrong)
        reference, *logits = (decoder.output(decoder.norm(x)[0, -1]).double() for x in (right, *variants))
    powers = [float((x - reference).square().sum()) for x in logits]
    total = sum(powers)
    return {block: power / total for block, power in zip(blocks, powers, strict=True)} if total else {}
