"""The scheme of each tensor as its own bytes show it: known quantizers, scales that nobody knows, integers that are not the nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from verifier.artifact.storage import Span, Storage
from verifier.audit import compare
from verifier.audit.expected import Source, expected_contents, stated_scheme
from verifier.audit.fidelity import measure
from verifier.audit.inventory import Constant
from verifier.audit.own_scales import judge_by_own_scales
from verifier.audit.recipe import quantized_linear
from verifier.audit.records import Audited
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor
from verifier.core.types import Quantizer, Recipe, Scheme
from verifier.families.family import Parameter

ROWS, COLUMNS, GROUP = 24, 128, 32
RECIPE = Recipe(group_size=GROUP)
NAME = "text_decoder.layers.0.attention.wq.weight"
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))


def _constant(group: int = GROUP) -> Constant:
    quantization = PerGroup(0, group, Span(0, 0), ROWS * COLUMNS // group)
    return Constant("text_decoder", 3, 0, "linear", GraphValue(1, "qbint4", (ROWS, COLUMNS), quantization, None, None))


def _source(*, declared: bool, recipe: Recipe = RECIPE) -> Source:
    checkpoint = SimpleNamespace(tensor=lambda _key: WEIGHT)
    family: Any = SimpleNamespace(checkpoint=checkpoint)
    return Source(family, recipe, declared)


PARAMETER = Parameter(NAME, "key", (0, 0))


@pytest.mark.parametrize("quantizer", get_args(Quantizer))
def test_quantizer_is_read_from_the_integers(quantizer: Quantizer) -> None:
    """Each known one is told from the others, whatever the recipe takes for likely."""
    stored = quantized_linear(WEIGHT, Scheme(GROUP, quantizer)).integers
    source = _source(declared=False)
    expected = expected_contents(_constant(), PARAMETER, source, stored)
    assert expected is not None
    assert torch.equal(expected.values, stored)
    assert source.schemes[NAME] == Scheme(GROUP, quantizer)


def test_quantizers_make_different_integers() -> None:
    """No two of them are one."""
    made = [quantized_linear(WEIGHT, Scheme(GROUP, quantizer)).integers for quantizer in get_args(Quantizer)]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[i + 1 :])


def test_manifest_leaves_no_choice() -> None:
    """Where a manifest states the recipe, another quantizer's integers are not looked for, and other groups are not explained."""
    stored = quantized_linear(WEIGHT, Scheme(GROUP, "hqq")).integers
    expected = expected_contents(_constant(), PARAMETER, _source(declared=True), stored)
    assert expected is not None
    assert not torch.equal(expected.values, stored)
    assert expected_contents(_constant(64), PARAMETER, _source(declared=True), stored) is None
    assert expected_contents(_constant(64), PARAMETER, _source(declared=False), stored) is not None


def test_head_has_groups_of_its_own() -> None:
    """By the recipe."""
    recipe = Recipe(group_size=128, head_group_size=32)
    assert stated_scheme(recipe, "text_decoder.output.weight") == Scheme(32)
    assert stated_scheme(recipe, NAME) == Scheme(128)


def _own_scales(factor: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of a quantizer that nobody knows: the nearest integers at scales of its own."""
    scales = (quantized_linear(WEIGHT, Scheme(GROUP)).scales * factor).to(torch.bfloat16).float()
    wide = scales.repeat_interleave(GROUP, 1)
    return (WEIGHT / wide).round().clamp(-8, 7).to(torch.int8), scales


def test_nearest_integers_are_counted() -> None:
    """Integers cut off at the end of their range are right at their scale; one step beside the weight is not, nor is a weight of NaN."""
    integers, scales = _own_scales()
    assert bool((integers == 7).any())
    assert measure(_constant(), integers, scales, WEIGHT).not_nearest == 0
    moved = integers.clone()
    moved[5, 7] += -1 if integers[5, 7] > 0 else 1
    assert measure(_constant(), moved, scales, WEIGHT).not_nearest == 1
    broken = WEIGHT.clone()
    broken[2, 3] = torch.nan
    assert measure(_constant(), integers, scales, broken).not_nearest == 1


def _record(**fields: Any) -> Audited:
    record = Audited(NAME, "key", "text_decoder", 3, "linear", 10_000, reason="9 elements differ", wrong=9)
    known = {"scheme": "hqq", "equal": 0.971, "scheme_db": 20.0, "sqnr_db": 19.8, "not_nearest": 0}
    return replace(record, **(known | fields))


EXACT = _record(reason="", wrong=0, scheme="")


def test_unknown_scales_with_the_nearest_integers_are_right() -> None:
    """If no tensor is a known quantizer's: noted with the nearest one."""
    (judged,) = judge_by_own_scales([_record()])
    assert (judged.reason, judged.wrong) == ("", 0)
    assert "97.1 %" in judged.noted


@pytest.mark.parametrize(
    "fields",
    [
        {"sqnr_db": 12.0},
        {"sqnr_db": float("nan")},
        {"sqnr_db": None},
        {"scheme_db": None},
        {"not_nearest": 3},
        {"scheme": ""},
    ],
)
def test_what_is_not_right_stays_wrong(fields: dict[str, Any]) -> None:
    """Far from the checkpoint, not a number, not measured, a few integers that are not the nearest."""
    (judged,) = judge_by_own_scales([_record(**fields)])
    assert judged.reason
    assert judged.explained


def test_a_quantizer_that_moves_many_integers_is_not_understood() -> None:
    """As near to the checkpoint as a known one, by other integers than the nearest: nobody here can say that it is wrong."""
    (judged,) = judge_by_own_scales([_record(not_nearest=2_000)])
    assert judged.reason
    assert not judged.explained


def test_one_tensor_among_many_known_ones_was_changed() -> None:
    """Three linears are exactly HQQ's: the fourth stays wrong though it looks like another choice of scales."""
    judged = judge_by_own_scales([EXACT, EXACT, _record(), EXACT])
    assert [bool(record.reason) for record in judged] == [False, False, True, False]


CHANNELS = (0.5, 0.25, 1.0)
TOWER = "vision_encoder.tower.layers.0.fc1.weight"


def _static(dtype: str, quantization: Any, role: Any = "linear", rows: int = ROWS) -> Constant:
    """A constant of an int8 delegate whose activations have a scale of 0.5."""
    shape = (rows, COLUMNS) if role == "linear" else (rows,)
    value = GraphValue(1, dtype, shape, quantization, None, None)
    return Constant("vision_encoder", 3, 0, role, value, quantization, input_scale=0.5)


def test_int8_weight_of_a_tower_may_have_a_scale_for_each_channel() -> None:
    """Where no manifest says otherwise: the largest magnitude of each row over 127."""
    constant = _static("qcint8", PerChannel(0, tuple([1.0] * ROWS), ROWS))
    expected = expected_contents(constant, Parameter(TOWER, "key", (0, 0)), _source(declared=False))
    assert expected is not None
    assert expected.scales is not None
    assert torch.allclose(expected.scales, WEIGHT.abs().amax(1) / 127)
    assert torch.equal(expected.values, (WEIGHT / expected.scales[:, None]).round().to(torch.int8))


@pytest.mark.parametrize("dtype", ["fp32", "qint8"])
def test_manifest_says_how_the_tower_is_stored(dtype: str) -> None:
    """What it does not say is not explained."""
    constant = _static(dtype, PerTensor(0.1, 0) if dtype == "qint8" else None)
    for vision in ("int8", "fp32"):
        source = _source(declared=True, recipe=Recipe(group_size=GROUP, vision=vision))
        explained = expected_contents(constant, Parameter(TOWER, "key", (0, 0)), source) is not None
        assert explained == (vision == {"fp32": "fp32", "qint8": "int8"}[dtype])


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.01, False), (float("nan"), False)])
def test_bias_of_channels_has_the_scales_of_its_weight(factor: float, right: bool) -> None:
    """The activation's scale times that of each channel."""
    storage = Storage(Path(), (), {}, (), 0)
    weight = _static("qcint8", PerChannel(0, CHANNELS, 3), rows=3)
    scales = (0.25, 0.125 * factor, 0.5)
    bias = _static("qcint32", PerChannel(0, scales, 3), "bias", rows=3)
    record = Audited("b", "key", "vision_encoder", 3, "bias", 3)
    assert bool(compare._check_bias_scales(record, bias, weight, storage).reason) != right
    assert compare._check_bias_scales(record, bias, None, storage).reason


def test_what_was_cast_before_the_export_is_known() -> None:
    """bf16 and fp16 leave other numbers; a manifest leaves no choice, and another number is none of them."""
    constant = _static("fp32", None)
    for dtype in (torch.bfloat16, torch.float16):
        cast = WEIGHT.to(dtype).float()
        expected = expected_contents(constant, Parameter(TOWER, "key", (0, 0)), _source(declared=False), cast)
        assert expected is not None
        assert torch.equal(expected.values, cast)
        assert str(dtype).removeprefix("torch.") in expected.what
    wrong = expected_contents(constant, Parameter(TOWER, "key", (0, 0)), _source(declared=False), WEIGHT + 1)
    assert wrong is not None
    assert torch.equal(wrong.values, WEIGHT)
