"""`device.*`: a machine that computes wrongly is named and blamed, and not the file; two machines that differ are seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.faults.judging import results_of
from verifier.core.compare import EQUAL_DB
from verifier.core.types import Missing
from verifier.golden.bands import Tolerances
from verifier.ladder.counterparts import counterpart
from verifier.ladder.evidence import LayerEvidence
from verifier.ladder.limits import device_limit_db
from verifier.ladder.records import Replay
from verifier.measures.evidence import Evidence

pytestmark = pytest.mark.xdist_group("faults")
DECODER = "text_decoder"
NOT_TRACED = Missing("not traced", "unasked")


def _on_device(
    gathered: Evidence, instructions: dict[str, str], layers: LayerEvidence | Missing = NOT_TRACED
) -> Evidence:
    ran = replace(gathered.runtime.conversations, instructions=instructions)
    return replace(gathered, layers=layers, runtime=replace(gathered.runtime, conversations=ran))


def _layers(covered_in: dict[int, tuple[int, ...]], **fields: Any) -> LayerEvidence:
    """Two decoder calls, of 35 tokens and of one, on instructions 1 and 2."""
    computing = {DECODER: (1, 2)}
    replay = Replay((), (), (), computing, computing, covered_in)
    return LayerEvidence({}, replay, tokens={0: 35, 1: 1}, **fields)


def test_right_instructions_pass_and_wrong_ones_are_an_error(gathered: Evidence) -> None:
    """An emulator's SMOPA: named with what came out; never a failure of the file, and never a pass."""
    right = results_of("device.instructions", _on_device(gathered, {"SDOT": "", "SMOPA": ""}))
    assert [r.verdict for r in right] == ["pass"]
    wrong = results_of(
        "device.instructions", _on_device(gathered, {"SDOT": "", "SMOPA": "row 0, column 1 is 3, expected 4"})
    )
    assert [r.verdict for r in wrong] == ["error"]
    assert "SMOPA (row 0, column 1 is 3, expected 4)" in wrong[0].message
    assert [r.verdict for r in results_of("device.instructions", _on_device(gathered, {}))] == ["skipped"]


def test_instruction_that_was_seen_for_one_length_only_is_a_hole(gathered: Evidence) -> None:
    """Kernels for one token are others than for many."""
    whole = _on_device(gathered, {}, _layers({0: (1, 2), 1: (1, 2)}))
    assert [r.verdict for r in results_of("device.lengths", whole)] == ["pass", "pass"]
    holed = _on_device(gathered, {}, _layers({0: (1, 2), 1: (1,)}))
    one, several = results_of("device.lengths", holed)
    assert (one.verdict, one.where and one.where.instruction, several.verdict) == ("error", 2, "pass")
    assert {r.verdict for r in results_of("device.lengths", _on_device(gathered, {}))} == {"error"}


def test_other_machine_that_gives_something_else_fails(gathered: Evidence) -> None:
    """By method and call; a NaN, and no comparison at all, never pass."""
    rng = np.random.default_rng(0)
    vision, logits = rng.standard_normal((1, 4, 8)).astype(np.float32), rng.standard_normal((1, 8)).astype(np.float32)
    outputs = {"vision_encoder": vision, DECODER: logits}
    near = [counterpart(method, at, there=x, here=x) for at, (method, x) in enumerate(outputs.items())]
    covered = {0: (1, 2), 1: (1, 2)}

    def verdicts(pairs: Any) -> list[str]:
        layers = _layers(covered, counterparts=pairs)
        return [r.verdict for r in results_of("device.host", _on_device(gathered, {}, layers))]

    assert verdicts(tuple(near)) == ["pass", "pass"]
    for pair in near:
        here = outputs[pair.method]
        off = here + np.float32(0.1) * rng.standard_normal(here.shape).astype(np.float32)
        for there in (off, np.full_like(off, np.nan), off[..., :-1]):
            wrong = counterpart(pair.method, pair.call, there=there, here=here)
            broken = tuple(wrong if p is pair else p for p in near)
            assert verdicts(broken) == ["fail" if p is pair else "pass" for p in near]
        for value in (np.nan, np.inf):
            odd = tuple(replace(p, sqnr_db=value) if p is pair else p for p in near)
            assert verdicts(odd) == ["fail" if p is pair else "pass" for p in near]
    assert verdicts(tuple(near[:1])) == ["pass", "error"]
    assert verdicts(Missing("the program does not run on this machine", "verifier")) == ["error", "error"]


def test_other_machine_may_differ_by_what_rounding_costs(gathered: Evidence) -> None:
    """An encoder whose clean export keeps 11 dB of fp32 may part further from itself than one that keeps 26, and no further than that."""
    assert isinstance(gathered.tolerances, Tolerances)
    rng = np.random.default_rng(0)
    vision = rng.standard_normal((1, 64, 8)).astype(np.float32)
    weak = replace(gathered.tolerances.bands["vision.sqnr_db"], measured={"wide_0": 11.25})
    noisy = replace(gathered.tolerances, bands=gathered.tolerances.bands | {"vision.sqnr_db": weak})
    layers = gathered.geometry.vision.layers
    limit = device_limit_db(layers, 11.25)
    assert limit < device_limit_db(layers, 26.0) == device_limit_db(layers, EQUAL_DB)

    def verdict(tolerances: Tolerances | Missing, distance_db: float) -> str:
        there = vision + np.float32(10 ** (-distance_db / 20)) * rng.standard_normal(vision.shape).astype(np.float32)
        found = _layers({0: (1,)}, counterparts=(counterpart("vision_encoder", 0, there=there, here=vision),))
        return results_of("device.host", replace(_on_device(gathered, {}, found), tolerances=tolerances))[0].verdict

    assert verdict(noisy, limit + 2) == "pass"
    assert verdict(noisy, limit - 2) == verdict(gathered.tolerances, limit + 2) == "fail"
    assert verdict(Missing("never calibrated", "verifier"), limit + 2) == "fail"
