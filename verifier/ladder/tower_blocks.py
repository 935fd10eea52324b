"""Layers of the encoder of images against the program, each on the program's own input: against the `quantized` rung, where only rounding ties may differ,
and against the fp32 definition, which gives what quantization costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from verifier.core.limits import limit
from verifier.families.conventions import ENCODER
from verifier.families.definition import Definition, Encoder, EncoderLayer
from verifier.ladder.blocks import Taps, TracedCall, added_error
from verifier.ladder.evidence import BlockError
from verifier.ladder.limits import rounded_limit_db, static_limit_db
from verifier.ladder.replay import Tapped
from verifier.ladder.tower import TowerRung

TIPPED = limit("layers.graph.tipped")


@dataclass(frozen=True)
class _Half:
    """Half of a layer in one call: the stream before it and behind it as the program had it, and what the definition makes of the former."""

    block: str
    part: str
    before: Tensor
    actual: Tensor
    compute: Callable[[], Tensor]


def _halves(encoder: Encoder, taps: Taps, number: int, call: TracedCall, tapped: Tapped) -> Iterator[_Half]:
    """In the order of the computation; what stands before the layers is `input`, and the projector belongs to the last of them."""

    def tap(norm: str) -> Tensor | None:
        return taps.read_by(f"{ENCODER}.{norm}", tapped, number)

    layers, tokens, nothing = encoder.blocks, taps.result(ENCODER, tapped, number), torch.zeros(())
    embedded = tap(encoder.first_norm)
    if embedded is not None:
        yield _Half(f"{ENCODER}.input", "embedding", nothing, embedded, partial(encoder.tokens, call.inputs[0]))
    for index, layer in enumerate(layers):
        before, middle = (tap(norm) for norm in layer.norms)
        if before is None or middle is None:
            continue
        block = f"{ENCODER}.layers.{index}"
        yield _Half(block, "attention", before, middle, partial(layer.attention, before))
        if index + 1 < len(layers):
            after = tap(layers[index + 1].norms[0])
            if after is not None:
                yield _Half(block, "feed_forward", middle, after, partial(layer.feed_forward, middle))
        elif tokens is not None:
            yield _Half(
                block,
                "feed_forward and projector",
                nothing,
                tokens,
                partial(_projected, encoder, layer, middle),
            )


def _projected(encoder: Encoder, layer: EncoderLayer, middle: Tensor) -> Tensor:
    return encoder.project(layer.feed_forward(middle))


def _of_encoder(
    definition: Definition, taps: Taps, calls: Sequence[TracedCall], tapped: Tapped
) -> Iterator[tuple[int, str, _Half]]:
    """Every half of every layer in every call of the encoder, with the call's number and the name of its image."""
    with torch.no_grad():
        for number, call in enumerate(calls):
            if call.method == ENCODER:
                for half in _halves(definition.encoder, taps, number, call, tapped):
                    yield number, call.sample, half


def vision_layers(definition: Definition, taps: Taps, calls: Sequence[TracedCall], tapped: Tapped) -> list[BlockError]:
    """What the layers add, and the projector gives, against the fp32 definition: the price of quantization layer by layer."""
    return [
        _error(number, sample, half, half.actual, half.compute())
        for number, sample, half in _of_encoder(definition, taps, calls, tapped)
    ]


@dataclass(frozen=True)
class TowerErrors:
    """What the layers add against the quantized rung, with limits, and against fp32; the `problem` where there is no rung."""

    against_rung: tuple[BlockError, ...]
    against_fp32: tuple[BlockError, ...]
    problem: str = ""


def compare_tower(
    definition: Definition, rung: TowerRung, taps: Taps, calls: Sequence[TracedCall], tapped: Tapped
) -> TowerErrors:
    """All layers in all calls of the encoder. Raises `UnknownOperationError` if the file computes something in int8 that the rung does not."""
    against_rung: list[BlockError] = []
    against_fp32: list[BlockError] = []
    for number, sample, half in _of_encoder(definition, taps, calls, tapped):
        exact = half.compute()
        against_fp32.append(_error(number, sample, half, half.actual, exact))
        against_rung.append(_against_rung(rung, number, sample, half, exact))
    if against_rung:
        rung.require_all_met()
    return TowerErrors(tuple(against_rung), tuple(against_fp32))


def _against_rung(rung: TowerRung, number: int, sample: str, half: _Half, exact: Tensor) -> BlockError:
    with rung.rounding() as mode:
        made = half.compute()
    error = _error(number, sample, half, half.actual, made)
    rounded_db = rounded_limit_db(_ratio(half, made))
    if not mode.used:
        return replace(error, limit_db=rounded_db)
    cost_db = _error(number, sample, half, made, exact).sqnr_db
    error = replace(error, limit_db=min(rounded_db, static_limit_db(error.elements, cost_db)))
    if error.holds or error.reason:
        return error
    with rung.rounding(flip_ties=True):
        flipped = half.compute()
    tipped_db = _error(number, sample, half, flipped, made).sqnr_db
    return replace(error, limit_db=min(error.limit_db, tipped_db - TIPPED.value))


def _error(number: int, sample: str, half: _Half, actual: Tensor, expected: Tensor) -> BlockError:
    made = added_error(half.block, half.part, number, half.before, actual, expected)
    return replace(made, sample=sample)


def _ratio(half: _Half, made: Tensor) -> float:
    """How much larger the stream is than what is added to it, as a quotient of their norms; at least 1."""
    if not half.before.dim() or half.before.shape != made.shape:
        return 1.0
    added = float((made - half.before).norm())
    return max(1.0, float(made.norm()) / added) if added else math.inf
