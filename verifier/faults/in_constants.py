"""Faults in the bytes: weights, scales, zero points, norms, tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verifier.artifact.plan import TensorValue
from verifier.artifact.storage import Span
from verifier.audit.inventory import take_inventory
from verifier.audit.recipe import quantized_linear
from verifier.core.errors import ArtifactError
from verifier.core.types import Scheme
from verifier.families.llava.keymap import map_keys
from verifier.families.llava.text import inverse_frequencies
from verifier.faults.fault import NOT_VERIFIED, Fault, Work, fault
from verifier.faults.surgery import change_bytes
from verifier.runner.protocol import Array

WEIGHTS = "weights.*"
W1, W2, WO = "layers.2.feed_forward.w1", "layers.1.feed_forward.w2", "layers.{}.attention.wo"


def _decoder(parameter: str) -> str:
    return f"text_decoder.{parameter}.weight"


def _element(array: Array, index: int, factor: float) -> Array:
    array[index] *= array.dtype.type(factor)
    return array


@fault("bytes", "one nibble of a 4-bit weight is one more", rows=(60,), step="lowering", place=W1, quick=WEIGHTS)
def one_nibble(work: Work) -> None:
    """The smallest change that a weight can have."""

    def change(packed: Array) -> Array:
        at = int(np.flatnonzero((packed & 15) < 15)[1000])
        packed[at] += 1
        return packed

    work.edit(_decoder(W1), change)


@fault("bytes", "one bit of a 4-bit weight flipped in transit", rows=(60,), step="lowering", place=W2)
def one_bit(work: Work) -> None:
    """The highest bit of a nibble, in the middle of the tensor."""

    def change(packed: Array) -> Array:
        packed[len(packed) // 2] ^= 0x80
        return packed

    work.edit(_decoder(W2), change)


@fault("bytes", "one bit flipped in a file that still has its manifest", rows=(60,), step="lowering", place="output")
def one_bit_with_manifest(work: Work) -> None:
    """The blame must say which tensor, not only that the hash differs."""
    manifest = work.model / "llava_tiny.manifest.json"
    work.pte.with_suffix(".manifest.json").write_bytes(manifest.read_bytes())
    work.edit(_decoder("output"), lambda packed: np.concatenate([packed[:7], packed[7:8] ^ np.uint8(1), packed[8:]]))


@fault("bytes", "the scale of one group is 1 % larger", step="lowering", place=W1)
def one_group_scale(work: Work) -> None:
    """Three bf16 steps at most; 128 of 196,608 weights."""

    def change(scales: Array) -> Array:
        wide = scales.astype(np.uint32) << 16
        real = wide.view(np.float32)
        real[100] *= np.float32(1.01)
        scales[100] = (real.view(np.uint32)[100] + 0x8000) >> 16
        return scales

    work.edit_scales(_decoder(W1), change)


@fault("bytes", "one row of the embedding is its neighbour's", step="lowering", place="token_embedding")
def one_embedding_row(work: Work) -> None:
    """A token that no golden conversation has."""
    rows = work.checkpoint.geometry.text.vocabulary

    def change(table: Array) -> Array:
        lines = table.reshape(rows, -1)
        lines[777] = lines[778]
        return lines

    work.edit("token_embedding.weight", change)


@fault("bytes", "one element of the embedding is one step off", step="lowering", place="token_embedding")
def one_embedding_element(work: Work) -> None:
    """A step of int8 in one of 400,000."""

    def change(table: Array) -> Array:
        signed = table.view(np.int8)
        at = int(np.flatnonzero(np.abs(signed.astype(np.int16)) < 100)[5000])
        signed[at] += 1
        return signed

    work.edit("token_embedding.weight", change)


@fault("bytes", "one scale of the embedding is 1 % larger", step="lowering", place="token_embedding")
def one_embedding_scale(work: Work) -> None:
    """32 elements of one token."""
    constant = next(c for c in take_inventory(work.clean) if c.role == "embedding scales")
    assert constant.value.constant is not None
    change_bytes(work.pte, constant.value.constant, lambda raw: _element(raw.view(np.float32), 6000, 1.01))


@fault("bytes", "two heads of the queries swapped", step="lowering", place="layers.1.attention.wq")
def two_heads_swapped(work: Work) -> None:
    """Integers and scales of heads 0 and 1 of one layer's query projection."""
    head = work.checkpoint.geometry.text.head_dim
    rows = work.checkpoint.geometry.text.heads * head

    def change(raw: Array) -> Array:
        lines = raw.reshape(rows, -1)
        return np.concatenate([lines[head : 2 * head], lines[:head], lines[2 * head :]])

    work.edit(_decoder("layers.1.attention.wq"), change)
    work.edit_scales(_decoder("layers.1.attention.wq"), change)


@fault("bytes", "the output projections of two layers swapped", step="lowering", place="layers.0.attention.wo")
def two_layers_swapped(work: Work) -> None:
    """Every tensor is there, two are not where they belong."""
    first, second = (work.constants[_decoder(WO.format(layer))] for layer in (0, 1))
    _exchange(work, first.value.constant, second.value.constant)
    _exchange(work, _scales(first), _scales(second))


def _exchange(work: Work, first: Any, second: Any) -> None:
    one, other = (np.fromfile(work.pte, np.uint8, span.size, offset=span.offset) for span in (first, second))
    change_bytes(work.pte, first, lambda _old: other)
    change_bytes(work.pte, second, lambda _old: one)


def _scales(constant: Any) -> Any:
    return constant.value.quantization.scales


@fault("bytes", "a linear stored without its zero point", rows=(25,), step="lowering", place="layers.1.feed_forward.w1")
def zero_point_0_for_8(work: Work) -> None:
    """Two's complement where XNNPACK wants plus eight."""
    work.edit(_decoder("layers.1.feed_forward.w1"), lambda packed: packed ^ np.uint8(0x88))


@fault("bytes", "a linear's packed rows read with a wrong stride", rows=(51,), step="lowering", place=W2)
def packing_of_another_kernel(work: Work) -> None:
    """Pairs of rows interleaved, as a kernel with wider tiles packs them."""
    rows = work.checkpoint.geometry.text.width

    def change(packed: Array) -> Array:
        lines = packed.reshape(rows // 2, 2, -1)
        return np.stack([lines[:, 1], lines[:, 0]], axis=1)

    work.edit(_decoder(W2), change)


@fault(
    "bytes", "a linear cast to bf16 before it was quantized", rows=(43,), step="lowering", place="layers.0.attention.wv"
)
def cast_before_quantizing(work: Work) -> None:
    """Other integers here and there; a good SQNR."""
    parameter = "layers.0.attention.wv"
    constant = work.constants[_decoder(parameter)]
    key = map_keys(work.checkpoint.keys, work.checkpoint.geometry).text[parameter + ".weight"]
    weight = work.checkpoint.tensor(key).to(torch.bfloat16).float()
    quantization: Any = constant.value
    made = quantized_linear(weight, Scheme(quantization.quantization.group_size))
    nibbles = (made.integers.to(torch.int16) + 8).to(torch.uint8).reshape(-1, 2)
    packed = (nibbles[:, 0] | (nibbles[:, 1] << 4)).numpy()
    scales = (made.scales.numpy().view(np.uint32) >> 16).astype(np.uint16).reshape(-1)
    work.edit(_decoder(parameter), lambda _old: packed)
    work.edit_scales(_decoder(parameter), lambda _old: scales)


@fault(
    "bytes", "one weight of a decoder norm has the wrong sign", step="lowering", place=r"(ffn_norm|attention_norm|norm)"
)
def one_norm_weight(work: Work) -> None:
    """Layer 3's, channel 17."""
    work.edit("text_decoder.layers.3.ffn_norm.weight", lambda raw: _element(raw.view(np.float32), 17, -1.0))


@fault("bytes", "one channel of the final norm is 5 % larger", step="lowering", place=r"text_decoder\.norm")
def one_final_norm_channel(work: Work) -> None:
    """One of 256."""
    work.edit("text_decoder.norm.weight", lambda raw: _element(raw.view(np.float32), 100, 1.05))


@fault("bytes", "the epsilon of the decoder's norms is 1e-6", step="lowering", place="attention_norm", quick=WEIGHTS)
def epsilon_of_norms(work: Work) -> None:
    """A change that no caption shows."""
    constant = next(c for c in take_inventory(work.clean) if c.role == "epsilon")
    assert constant.value.constant is not None
    change_bytes(work.pte, constant.value.constant, lambda _old: np.array([1e-6], np.float32))


def _rope(work: Work) -> list[TensorValue]:
    """The tables of cosines and sines, [positions, head_dim] fp32."""
    tables = [c.value for c in take_inventory(work.clean) if c.role == "rope" and isinstance(c.value, TensorValue)]
    if len(tables) != 2:
        raise ArtifactError("the decoder has no two RoPE tables", got=len(tables), where=work.pte)
    return tables


@fault(
    "bytes",
    "one row of the RoPE table is its neighbour's, at position 700",
    step="lowering",
    place=r"rope.*700",
    quick=WEIGHTS,
)
def rope_row_700(work: Work) -> None:
    """No golden conversation gets that far."""
    for value in _rope(work):
        assert value.constant is not None
        row_bytes = value.sizes[1] * 4

        def change(table: Array, row_bytes: int = row_bytes) -> Array:
            lines = table.reshape(-1, row_bytes)
            lines[700] = lines[701]
            return lines

        change_bytes(work.pte, value.constant, change)


def _always(table: Array) -> Callable[[Array], Array]:
    return lambda _old: table


def _new_tables(work: Work, angles: Array) -> None:
    both = np.concatenate([angles, angles], axis=1)
    for value, made in zip(_rope(work), (np.cos(both), np.sin(both)), strict=True):
        assert value.constant is not None
        table = made.astype(np.float32)
        change_bytes(work.pte, value.constant, _always(table))


def _new_frequencies(work: Work, theta: float, scale: float = 1.0) -> bool:
    """In a program that computes RoPE itself: its inverse frequencies. False in one that has tables."""
    text = work.checkpoint.geometry.text
    right = inverse_frequencies(text).numpy()
    half = len(right)
    wrong = (scale * theta ** (-np.arange(half) / half)).astype(np.float32)
    changed: list[bool] = []

    def change(raw: Array) -> Array:
        stored = raw.view(np.float32)
        changed.append(np.allclose(stored, right))
        return wrong if changed[-1] else stored

    for constant in take_inventory(work.clean):
        if (constant.method, constant.elements) == ("text_decoder", half) and constant.value.constant is not None:
            change_bytes(work.pte, constant.value.constant, change)
    return any(changed)


def _angles(work: Work, theta: float, scale: float = 1.0) -> Array:
    half = work.checkpoint.geometry.text.head_dim // 2
    positions = _rope(work)[0].sizes[0]
    return np.outer(np.arange(positions) * scale, theta ** (-np.arange(half) / half))


@fault("bytes", "RoPE of a sibling: theta 1e6 for 1e4", rows=(2,), step="lowering", place="rope")
def other_rope_theta(work: Work) -> None:
    """The tables of another family, or its frequencies."""
    if not _new_frequencies(work, 1e6):
        _new_tables(work, _angles(work, 1e6))


@fault("bytes", "RoPE positions scaled by 1/8", rows=(28,), step="lowering", place="rope")
def scaled_rope(work: Work) -> None:
    """A scale that belongs to longer contexts, hard-coded."""
    if not _new_frequencies(work, 1e4, 1 / 8):
        _new_tables(work, _angles(work, 1e4, 1 / 8))


@fault(
    "bytes", "a bias of the projector is zero", rows=(3,), step="lowering", place="projector.linear_1", quick=WEIGHTS
)
def dropped_projector_bias(work: Work) -> None:
    """All 256 of it."""
    work.edit("vision_encoder.projector.linear_1.bias", np.zeros_like)


@fault("bytes", "a bias inside the vision tower is zero", rows=(3,), step="lowering", place="layers.2.fc2")
def dropped_tower_bias(work: Work) -> None:
    """That of one feed-forward."""
    work.edit("vision_encoder.tower.layers.2.fc2.bias", np.zeros_like)


@fault(
    "bytes",
    "the vision position table is shifted by one",
    step="lowering",
    place=r"position_embedding|vision_encoder.input",
)
def positions_shifted(work: Work) -> None:
    """Every patch has its neighbour's position."""
    positions = work.checkpoint.geometry.vision.patches + 1
    work.edit("vision_encoder.tower.position_embedding", lambda raw: np.roll(raw.reshape(positions, -1), 1, 0))


@fault("bytes", "one int8 weight of the vision tower is one step off", step="lowering", place="layers.1.attention.q")
def one_vision_weight(work: Work) -> None:
    """One of 16,384."""

    def change(raw: Array) -> Array:
        signed = raw.view(np.int8)
        signed[8191] += 1 if signed[8191] < 0 else -1
        return signed

    work.edit("vision_encoder.tower.layers.1.attention.q.weight", change)


def _pixel_constant(work: Work, role: str) -> Span:
    constant = next(c for c in take_inventory(work.clean) if c.role == role and c.method == "vision_encoder")
    assert constant.value.constant is not None
    return constant.value.constant


@fault("bytes", "standard deviation of one channel for all", rows=(4,), step="lowering", place="vision_encoder")
def std_not_fully_loaded(work: Work) -> None:
    """std[1:] = std[0], inside the program."""
    change_bytes(work.pte, _pixel_constant(work, "std"), lambda raw: np.repeat(raw.view(np.float32)[:1], 3))


@fault("bytes", "the mean of one channel is 1 % off", rows=(4,), step="lowering", place="vision_encoder")
def mean_of_one_channel(work: Work) -> None:
    """Blue's."""
    change_bytes(work.pte, _pixel_constant(work, "mean"), lambda raw: _element(raw.view(np.float32), 2, 1.01))


@fault(
    "bytes", "the file is cut at 90 %", rows=(60,), step="lowering", place="", status=NOT_VERIFIED, quick="structure.*"
)
def truncated(work: Work) -> None:
    """A copy that did not get through."""
    size = work.pte.stat().st_size
    with work.pte.open("r+b") as file:
        file.truncate(size * 9 // 10)


FAULTS: tuple[Fault, ...] = (
    one_nibble,
    one_bit,
    one_bit_with_manifest,
    one_group_scale,
    one_embedding_row,
    one_embedding_element,
    one_embedding_scale,
    two_heads_swapped,
    two_layers_swapped,
    zero_point_0_for_8,
    packing_of_another_kernel,
    cast_before_quantizing,
    one_norm_weight,
    one_final_norm_channel,
    epsilon_of_norms,
    rope_row_700,
    other_rope_theta,
    scaled_rope,
    dropped_projector_bias,
    dropped_tower_bias,
    positions_shifted,
    one_vision_weight,
    std_not_fully_loaded,
    mean_of_one_channel,
    truncated,
)
