"""What belongs in the place of a constant, from the checkpoint, its configuration and the scheme that the bytes show, or the manifest states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from verifier.artifact.dtypes import XNNPACK
from verifier.artifact.nibbles import pack_nibbles
from verifier.artifact.storage import Bytes, Span
from verifier.audit.inventory import Constant
from verifier.audit.recipe import (
    Quantized,
    quantized_bias,
    quantized_embedding,
    quantized_linear,
    quantized_static,
    quantized_static_weight,
)
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor, Quantization
from verifier.core.types import Quantizer, Recipe, Scheme
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER
from verifier.families.family import Family, Parameter

HEAD, TABLE = f"{DECODER}.output.weight", f"{EMBEDDING}.weight"
"""The output head, which may have groups of its own, and the embedding table."""
QUANTIZERS: tuple[Quantizer, ...] = get_args(Quantizer)
CASTS = (torch.bfloat16, torch.float16)
"""What a checkpoint may have been cast to before it was exported."""


def stated_scheme(recipe: Recipe, name: str) -> Scheme:
    """The scheme of a weight by the recipe."""
    return recipe.embedding if name == TABLE else recipe.head if name == HEAD else recipe.linears


@dataclass(frozen=True)
class Source:
    """What an expectation is made from. If the recipe is `declared` by a manifest, nothing else is expected; if not, `schemes` are those that the
    bytes show, by the name of the weight: the comparison fills them in."""

    family: Family
    recipe: Recipe
    declared: bool = True
    schemes: dict[str, Scheme] = field(default_factory=dict)

    def tensor(self, key: str) -> Tensor:
        """One tensor of the checkpoint."""
        return self.family.checkpoint.tensor(key)

    def scheme(self, name: str) -> Scheme:
        """The scheme of a weight as far as it is known."""
        return self.schemes.get(name) or stated_scheme(self.recipe, name)


@dataclass(frozen=True)
class Expected:
    """Contents in the shape and dtype of the store, 4-bit integers unpacked to int8; `scales` of a weight, [1], [N] or [N, G]; `what` they are; the `number`
    that a quantized factor stands for; the `scheme` of integers."""

    values: Tensor
    what: str
    scales: Tensor | None = None
    number: float | None = None
    scheme: Scheme | None = None


def expected_contents(
    constant: Constant, parameter: Parameter | None, source: Source, stored: Tensor | None = None
) -> Expected | None:
    """What belongs into a constant; None if nothing explains it, or if it is stored in a form that the recipe never gives. Where no manifest states
    the recipe, what is most like the `stored` contents of all that is known, which `source.schemes` notes."""
    if parameter is None:
        return _derived(constant, source, stored)
    weight = source.tensor(parameter.key)
    if constant.role == "embedding" and source.recipe.embedding_bits != 32:
        return _best(_tables(weight, source), TABLE, source, stored)
    if constant.role not in ("linear", "convolution"):
        return _vector(constant, weight, source, stored)
    if constant.role == "linear" and constant.input_scale is None and constant.is_quantized:
        schemes = _schemes_of(constant, parameter, source)
        linears = (
            _integers(quantized_linear(weight, scheme), f"the recipe's {scheme.bits}-bit integers", scheme)
            for scheme in schemes
        )
        return _best(linears, parameter.name, source, stored)
    return _tower_weight(constant, weight, source, stored)


def stored_form(constant: Constant) -> tuple[int, int] | None:
    """Bits and group size of a weight that meets dynamically quantized rows, 0 for whole rows; None for a form that is not known."""
    value, quantization = constant.value, constant.stored_quantization
    if not isinstance(value, GraphValue) or not isinstance(quantization, PerGroup | PerChannel) or quantization.axis:
        return None
    bits = XNNPACK[value.dtype].item_bits
    group = quantization.group_size if isinstance(quantization, PerGroup) else 0
    return (bits, group) if bits in (4, 8) else None


def _schemes_of(constant: Constant, parameter: Parameter, source: Source) -> Iterator[Scheme]:
    """The scheme that a manifest states, or those of the stored form, the likeliest first."""
    form = stored_form(constant)
    known = source.scheme(parameter.name)
    if form is None or (source.declared and form != (known.bits, known.group_size)):
        return
    first = replace(known, bits=form[0], group_size=form[1])
    yield first
    if not source.declared:
        yield from (replace(first, quantizer=one) for one in QUANTIZERS if one != first.quantizer)


def _tables(weight: Tensor, source: Source) -> Iterator[Expected]:
    first = source.scheme(TABLE)
    others = () if source.declared else (replace(first, quantizer=q) for q in QUANTIZERS if q != first.quantizer)
    for scheme in (first, *others):
        yield _integers(quantized_embedding(weight, scheme), "the recipe's integers", scheme)


def _integers(made: Quantized, what: str, scheme: Scheme | None = None) -> Expected:
    return Expected(made.integers, what, made.scales, scheme=scheme)


def _best(candidates: Iterator[Expected], name: str, source: Source, stored: Tensor | None) -> Expected | None:
    """The first candidate that equals the stored contents, or that which equals most of them; the first one if nothing is given to compare."""
    best, most = None, -1
    for candidate in candidates:
        if stored is None or name in source.schemes or source.declared:
            return candidate
        equal = int((candidate.values == stored).sum()) if candidate.values.shape == stored.shape else 0
        if equal > most:
            best, most = candidate, equal
        if equal == stored.numel():
            break
    if best is not None and best.scheme is not None:
        source.schemes[name] = best.scheme
    return best


def _tower_weight(constant: Constant, weight: Tensor, source: Source, stored: Tensor | None) -> Expected | None:
    """A weight in static int8, or as the checkpoint has it."""
    quantization = constant.stored_quantization
    stated = source.recipe.vision if constant.method == ENCODER else "int8"
    if quantization is None:
        if constant.value.dtype not in ("fp32", "FLOAT") or (source.declared and stated != "fp32"):
            return None
        return _as_it_is(_arranged(constant, weight), source, stored)
    static = constant.value.dtype in ("qint8", "qcint8") and constant.input_scale is not None
    if not static or not isinstance(quantization, PerTensor | PerChannel) or (source.declared and stated != "int8"):
        return None
    made = quantized_static_weight(weight, per_channel=isinstance(quantization, PerChannel))
    return Expected(_arranged(constant, made.integers), "the recipe's int8 integers", made.scales)


def _arranged(constant: Constant, weight: Tensor) -> Tensor:
    """Dimensions as the constant has them."""
    if constant.role == "convolution":
        return weight.permute(0, 2, 3, 1).contiguous()
    return weight.T.contiguous() if constant.transposed else weight


def _vector(constant: Constant, weight: Tensor, source: Source, stored: Tensor | None) -> Expected | None:
    """A bias, a norm's weight, what is added, a table that is not quantized. None for a bias whose scales lie elsewhere in the file."""
    quantization = constant.stored_quantization or constant.quantization
    if isinstance(quantization, PerChannel) and not isinstance(quantization.scales, tuple):
        return None
    if constant.role == "bias" and isinstance(quantization, PerTensor | PerChannel):
        return Expected(quantized_bias(weight, quantization), "the recipe's int32 integers")
    if isinstance(quantization, PerTensor):
        static = quantized_static(weight, scale=quantization.scale, zero_point=quantization.zero_point)
        return Expected(static.reshape(constant.shape), "the recipe's int8 integers")
    return _as_it_is(weight.reshape(constant.shape), source, stored)


def _as_it_is(weight: Tensor, source: Source, stored: Tensor | None) -> Expected:
    """fp32 of a tensor, or of what a cast before the export left of it."""
    plain = Expected(weight.to(torch.float32), "the checkpoint's value")
    if source.declared or stored is None or torch.equal(plain.values, stored):
        return plain
    for dtype in CASTS:
        cast = weight.to(dtype).to(torch.float32)
        if torch.equal(cast, stored):
            return Expected(cast, f"the checkpoint's value, cast to {str(dtype).removeprefix('torch.')} before")
    return plain


def _derived(constant: Constant, source: Source, stored: Tensor | None) -> Expected | None:
    """Constants that no tensor of the checkpoint holds: they follow from its configuration, or from the recipe."""
    if constant.role == "embedding scales":
        scales = quantized_embedding(source.family.embedding_table(), source.scheme(TABLE)).scales
        same_count = scales.numel() == constant.elements
        return Expected(scales.reshape(constant.shape) if same_count else scales, "the recipe's scales")
    given = constant.quantization if isinstance(constant.quantization, PerTensor) else None
    candidates = source.family.derived(constant.role, constant.method, constant.shape, order=constant.order)
    made = [_as_stored(value, what, constant, given) for value, what in candidates]
    if not made or stored is None:
        return made[0] if made else None
    return min(made, key=lambda one: _distance(one, stored))


def _as_stored(value: Tensor, what: str, constant: Constant, given: PerTensor | None) -> Expected:
    if given is None or constant.role != "factor":
        return Expected(value.reshape(constant.shape), what)
    integers = quantized_static(value, scale=given.scale, zero_point=given.zero_point)
    return Expected(integers.reshape(constant.shape), what, number=float(value))


def _distance(expected: Expected, stored: Tensor) -> float:
    """How far a candidate is from the stored contents; what is not finite is equal, or infinitely far."""
    if torch.equal(expected.values.to(stored.dtype), stored):
        return 0.0
    return float((expected.values.double() - stored.double()).abs().nan_to_num(nan=torch.inf).sum())


def stored_bytes(constant: Constant, expected: Expected, recipe: Recipe) -> dict[Span, Bytes]:
    """An expectation packed as the file packs it, by the span that it belongs to."""
    value, values = constant.value, expected.values
    assert value.constant is not None
    delegated = isinstance(value, GraphValue) and value.is_packed
    if delegated or (constant.role == "embedding" and recipe.embedding_bits == 4):
        made = {value.constant: pack_nibbles(values.to(torch.int8).numpy(), low_first=delegated).reshape(-1)}
    else:
        made = {value.constant: _raw(values)}
    quantization: Quantization = constant.stored_quantization
    if isinstance(quantization, PerGroup) and expected.scales is not None:
        made[quantization.scales] = _raw(expected.scales.to(torch.bfloat16))
    return made


def _raw(tensor: Tensor) -> Bytes:
    raw: Bytes = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return raw
