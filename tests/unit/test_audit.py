"""Constants in parts: a large one is compared some rows at a time, with the result of the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import sqnr_db
from verifier.artifact.plan import TensorValue
from verifier.artifact.storage import Storage
from verifier.audit import compare, fidelity, recipe
from verifier.audit.expected import QUANTIZERS, Expected
from verifier.audit.fidelity import measure_fidelity
from verifier.audit.inventory import Constant
from verifier.audit.recipe import quantized_linear
from verifier.audit.records import Audited
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerTensor
from verifier.core.types import Quantizer, Scheme

SCALE = 0.01


@pytest.mark.parametrize("quantizer", [one for one in QUANTIZERS if one != "hqq"])
def test_linear_quantized_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch, quantizer: Quantizer) -> None:
    """Seven rows at a time, the last part shorter: integers and scales of all rows at once."""
    weight = torch.randn(30, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    asked = Scheme(32, quantizer)
    whole = quantized_linear(weight, asked)
    given: list[int] = []
    plain = recipe._quantized_rows

    def counted(part: torch.Tensor, asked: Scheme) -> recipe.Quantized:
        given.append(len(part))
        return plain(part, asked)

    monkeypatch.setattr(recipe, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(recipe, "_quantized_rows", counted)
    parts = quantized_linear(weight, asked)
    assert given == [7, 7, 7, 7, 2]
    assert torch.equal(parts.integers, whole.integers)
    assert torch.equal(parts.scales, whole.scales)


def _fidelity(stored: torch.Tensor, weight: torch.Tensor) -> Audited:
    value = TensorValue("CHAR", tuple(stored.shape), (), dynamic=False, constant=None, place=None, name=None)
    constant = Constant("vision_encoder", 0, None, "addend", value, PerTensor(SCALE, 3))
    record = Audited("x", None, "vision_encoder", 0, "addend", stored.numel())
    return measure_fidelity(record, constant, stored, weight, Storage(Path(), (), {}, (), 0))


@pytest.mark.parametrize("shape", [(20, 6), (2, 5, 4, 3), (1, 1, 9), ()])
def test_fidelity_in_parts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """The worst element is named wherever it lies, in the last part too; SQNR is that of the whole."""
    stored = torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    real = (stored.double() - 3) * SCALE
    weight = real + 0.3 * SCALE
    last = tuple(size - 1 for size in shape)
    weight[last] += 2 * SCALE
    whole = _fidelity(stored, weight.float())
    monkeypatch.setattr(fidelity, "AT_ONCE", 13)
    parts = _fidelity(stored, weight.float())
    assert (parts.index, parts.worst_steps) == (last, pytest.approx(2.3, abs=1e-4))
    assert replace(parts, sqnr_db=whole.sqnr_db) == whole
    expected = sqnr_db(actual=real.numpy(), expected=weight.float().double().numpy())
    assert parts.sqnr_db == pytest.approx(expected)
    assert whole.sqnr_db == pytest.approx(expected)


def test_what_is_not_a_number_is_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the checkpoint is not overlooked, in whatever part it is."""
    monkeypatch.setattr(fidelity, "AT_ONCE", 6)
    stored = torch.zeros(4, 6, dtype=torch.int8)
    weight = torch.zeros(4, 6)
    weight[2, 5] = torch.nan
    found = _fidelity(stored, weight)
    assert found.index == (2, 5)
    assert found.worst_steps is not None
    assert np.isnan(found.worst_steps)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_scale_that_is_no_number_is_wrong(scale: float) -> None:
    """Of a static int8 weight, and of QuickGELU's factor: a relative difference of NaN is within no limit."""
    expected = Expected(torch.zeros(2, 2, dtype=torch.int8), "the recipe's integers", torch.tensor(SCALE))
    source: Any = SimpleNamespace(geometry=SimpleNamespace(vision=SimpleNamespace(norm_eps=1e-5)))
    storage, record = Storage(Path(), (), {}, (), 0), Audited("x", None, "vision_encoder", 0, "linear", 4)

    def judged(value: float) -> tuple[str, str]:
        graph = GraphValue(0, "qint8", (2, 2), PerTensor(value, 0), None, None)
        linear = Constant("vision_encoder", 0, None, "linear", graph, None)
        factor = Constant("vision_encoder", 0, None, "factor", graph, PerTensor(value, 0))
        return (
            compare._check_scales(record, linear, expected, storage, None, source).reason,
            compare._check_factor(record, factor, torch.tensor(1.702 / SCALE), 1.702).reason,
        )

    assert judged(SCALE) == ("", "")
    assert all(judged(scale))


def _wrong_biases(stored: list[int], bias: list[float], scale: float) -> list[int]:
    """Places that differ from what the recipe gives, or may give."""
    count = len(stored)
    value = GraphValue(0, "qint32", (count,), PerTensor(scale, 0), None, None)
    constant = Constant("vision_encoder", 0, None, "bias", value)
    actual, weight = torch.tensor(stored, dtype=torch.int32), torch.tensor(bias)
    expected = recipe.quantized_bias(weight, PerTensor(scale, 0))
    return [int(i) for i in (compare._or_rounded(constant, actual, expected, weight) != actual).nonzero()]


def test_bias_between_two_integers_may_be_either() -> None:
    """Where the quotient lies in the middle to fp32's rounding, the exporter's scale, not yet rounded to fp32, decides; elsewhere it does not."""
    scale = 2.0**-10
    middle, inside = 10264.5 * scale, 10264.45 * scale
    assert _wrong_biases([10264, 10265], [middle, middle], scale) == []
    assert _wrong_biases([-10264, -10265], [-middle, -middle], scale) == []
    assert _wrong_biases([10264, 10265], [inside, inside], scale) == [1]
    assert _wrong_biases([10263, 10266], [middle, middle], scale) == [0, 1]
    assert _wrong_biases([1, 1], [0.45 * scale, 0.0], scale) == [0, 1]
    assert _wrong_biases([1, 1], [float("nan"), float("inf")], scale) == [0, 1]
