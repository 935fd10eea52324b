"""Blocks of the model against the program: what each adds to the residual stream, on the program's own input to it.

The stream is found where a norm reads it. A block of the decoder is held against the `quantized` rung, where only rounding
ties may differ; a layer of the vision tower against the fp32 definition, whose int8 noise is calibrated. The same streams,
held against the fp32 model run from the first token on, give the profile of error over depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verifier.artifact.plan import Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.audit.run import Audit
from verifier.ladder.replay import Replay
from verifier.metrics import sqnr_db
from verifier.model.definition import Definition


@dataclass(frozen=True)
class Taps:
    """EValues of the residual stream: `reads` maps a norm's name to the EValue it reads, `results` a method to its output."""

    reads: dict[str, int]
    results: dict[str, int]

    def watched(self) -> frozenset[tuple[str, int]]:
        """Method and EValue of everything to tap."""
        found = {(name.partition(".")[0], index) for name, index in self.reads.items()}
        return frozenset(found | set(self.results.items()))

    def read_by(self, norm: str, replay: Replay, call: int) -> Tensor | None:
        """The stream as the runtime had it when a norm read it; None if it was not tapped."""
        index = self.reads.get(norm)
        return None if index is None else replay.taps.get((call, index))

    def result(self, method: str, replay: Replay, call: int) -> Tensor | None:
        """The method's output as the runtime gave it; None if it was not tapped."""
        return replay.taps.get((call, self.results[method]))


@dataclass(frozen=True)
class BlockError:
    """One block in one call: SQNR in dB of what it adds to the stream. `part` is `attention`, `feed_forward`, `output`, ...;
    `elements` counts the stream's numbers that enter it; `sample` names the image of the conversation."""

    block: str
    part: str
    call: int
    sqnr_db: float
    elements: int
    sample: str = ""


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
    results = {method: artifact.plans[method].outputs[0] for method in ("vision_encoder", "text_decoder")}
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


def _added(block: str, part: str, call: int, before: Tensor, actual: Tensor, expected: Tensor) -> BlockError:  # noqa: PLR0917
    a, e = ((x - before).double().numpy() for x in (actual, expected))
    value = sqnr_db(actual=a, expected=e) if a.shape == e.shape else -400.0
    return BlockError(block, part, call, value, before.numel() if before.dim() else actual.numel())


class DecoderBlocks:
    """The decoder, block by block over the calls of conversations; keeps the reference's own KV-cache."""

    def __init__(self, decoder: Any, taps: Taps, layers: int) -> None:
        self.decoder, self.taps, self.layers = decoder, taps, layers

    def compare(self, number: int, call: TracedCall, replay: Replay) -> list[BlockError]:
        """Errors of all blocks in one call; a stream that was not tapped leaves its blocks out."""
        found: list[BlockError] = []
        position = torch.tensor([call.start])
        with torch.no_grad():
            cos, sin = self.decoder.rope.get_freqs(position, call.inputs[0].shape[1])
            for number_of_layer, layer in enumerate(self.decoder.layers):
                name = f"text_decoder.layers.{number_of_layer}"
                before, middle = (
                    self.taps.read_by(f"{name}.{norm}", replay, number) for norm in ("attention_norm", "ffn_norm")
                )
                after = self._after(replay, number, number_of_layer)
                if before is None or middle is None or after is None:
                    continue
                mixed, _ = layer.attention(layer.attention_norm(before), cos, sin, input_pos=position)
                found.append(_added(f"{name}.attention", "attention", number, before, middle, before + mixed))
                made = middle + layer.feed_forward(layer.ffn_norm(middle))
                middle, made = (x[:, -after.shape[1] :] for x in (middle, made))
                found.append(_added(f"{name}.feed_forward", "feed_forward", number, middle, after, made))
            last = self.taps.read_by("text_decoder.norm", replay, number)
            logits = self.taps.result("text_decoder", replay, number)
            if last is not None and logits is not None:
                expected = self.decoder.output(self.decoder.norm(last.reshape(-1, last.shape[-1])[-1:]))
                zero = torch.zeros(())
                found.append(_added("text_decoder.output", "output", number, zero, logits.view(1, -1), expected))
        return found

    def _after(self, replay: Replay, number: int, layer: int) -> Tensor | None:
        """The stream behind a layer: what the next norm reads; the final one may read the last token alone."""
        if layer + 1 < self.layers:
            return self.taps.read_by(f"text_decoder.layers.{layer + 1}.attention_norm", replay, number)
        last = self.taps.read_by("text_decoder.norm", replay, number)
        return None if last is None else last.reshape(1, -1, last.shape[-1])


def vision_layers(definition: Definition, taps: Taps, calls: Sequence[TracedCall], replay: Replay) -> list[BlockError]:
    """Layers of the vision tower on the program's own input to them, and the projector, against the fp32 definition."""
    return [
        replace(error, sample=call.sample)
        for number, call in enumerate(calls)
        if call.method == "vision_encoder"
        for error in _vision_layers(definition, taps, number, call, replay)
    ]


def _vision_layers(
    definition: Definition, taps: Taps, number: int, call: TracedCall, replay: Replay
) -> list[BlockError]:
    tower: Any = definition.vision.tower
    found: list[BlockError] = []

    def tap(name: str) -> Tensor | None:
        return taps.read_by(f"vision_encoder.tower.{name}", replay, number)

    tokens = taps.result("vision_encoder", replay, number)
    with torch.no_grad():
        embedded = tap("pre_norm")
        if embedded is not None:
            made = tower.tokens(definition.vision.normalize(call.inputs[0]))
            found.append(_added("vision_encoder.input", "embedding", number, torch.zeros(()), embedded, made))
        for index, layer in enumerate(tower.layers):
            name = f"layers.{index}"
            before, middle, after = tap(f"{name}.norm1"), tap(f"{name}.norm2"), tap(f"layers.{index + 1}.norm1")
            if before is None or middle is None:
                continue
            block = f"vision_encoder.{name}"
            mixed = before + layer.attention(layer.norm1(before))
            found.append(_added(block, "attention", number, before, middle, mixed))
            made = middle + layer.feed_forward(layer.norm2(middle))
            if after is not None:
                found.append(_added(block, "feed_forward", number, middle, after, made))
            elif tokens is not None:
                projected = definition.vision.projector(made[:, 1:])
                found.append(_added(block, "feed_forward", number, torch.zeros(()), tokens, projected))
    return found


def profile(definition: Definition, taps: Taps, calls: Sequence[TracedCall], replay: Replay) -> list[BlockError]:
    """SQNR of the residual stream behind every block against fp32 run end to end: how the error grows with depth."""
    found: list[BlockError] = []
    vision: dict[str, Tensor] = {}
    for number, call in enumerate(calls):
        if call.method == "vision_encoder":
            vision[call.sample] = definition.image_tokens(call.inputs[0])
            found += [replace(e, sample=call.sample) for e in _vision_profile(definition, taps, number, call, replay)]
    for sample, tokens in vision.items():
        found += [replace(e, sample=sample) for e in _text_profile(definition, taps, calls, replay, sample, tokens)]
    return found


def _vision_profile(
    definition: Definition, taps: Taps, number: int, call: TracedCall, replay: Replay
) -> list[BlockError]:
    tower, found = definition.vision.tower, []
    with torch.no_grad():
        x = tower.embed(definition.vision.normalize(call.inputs[0]))
        for index, layer in enumerate(tower.layers):
            x = layer(x)
            expected, actual = x, taps.read_by(f"vision_encoder.tower.layers.{index + 1}.norm1", replay, number)
            if index + 1 == len(tower.layers):
                expected = definition.vision.projector(x[:, 1:])
                actual = taps.result("vision_encoder", replay, number)
            if actual is not None:
                block = f"vision_encoder.layers.{index}"
                found.append(_added(block, "profile", number, torch.zeros(()), actual, expected))
    return found


def _text_profile(  # noqa: PLR0917
    definition: Definition, taps: Taps, calls: Sequence[TracedCall], replay: Replay, sample: str, vision: Tensor
) -> list[BlockError]:
    """The decoder's calls of one conversation in order; the image chunk is fed with the fp32 image tokens."""
    found: list[BlockError] = []
    layers = len(definition.decoder.layers)
    ids: Tensor | None = None
    for number, call in enumerate(calls):
        if call.sample != sample:
            continue
        if call.method == "token_embedding":
            ids = call.inputs[0]
        if call.method != "text_decoder":
            continue
        embedded = vision if ids is None else definition.embed(ids)
        ids = None
        _, states = definition.hidden(embedded, start=call.start)
        for index, expected in enumerate(states):
            name = f"layers.{index + 1}.attention_norm" if index + 1 < layers else "norm"
            actual = taps.read_by(f"text_decoder.{name}", replay, number)
            if actual is not None:
                actual = actual.reshape(1, -1, actual.shape[-1])
                block = f"text_decoder.layers.{index}.feed_forward"
                behind = expected[:, -actual.shape[1] :]
                found.append(_added(block, "profile", number, torch.zeros(()), actual, behind))
    return found


def error_shares(definition: Definition, quantized: Any, embeddings: Tensor) -> dict[str, float]:
    """How much each decoder layer's quantization contributes to the error of the last logits: shares that add up to 1.

    `embeddings` [1, S, D] run through the fp32 decoder with one layer at a time replaced by its quantized counterpart. Errors
    of layers are nearly independent, so their powers add up.
    """
    layers = definition.decoder.layers
    position = torch.tensor([0])
    powers: dict[str, float] = {}
    with torch.no_grad():
        cos, sin = definition.decoder.rope.get_freqs(position, embeddings.shape[1])
        reference = definition.last_logits(embeddings).double()
        before = embeddings
        for number, layer in enumerate(layers):
            x, _ = quantized.layers[number](before, cos, sin, {"input_pos": position})
            for following in layers[number + 1 :]:
                x, _ = following(x, cos, sin, {"input_pos": position})
            logits = definition.decoder.output(definition.decoder.norm(x)[0, -1]).double()
            powers[f"text_decoder.layers.{number}.feed_forward"] = float((logits - reference).square().sum())
            before, _ = layer(before, cos, sin, {"input_pos": position})
    total = sum(powers.values())
    return {block: power / total for block, power in powers.items()} if total else {}
