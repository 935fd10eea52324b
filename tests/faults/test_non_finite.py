"""NaN and infinity in a program: the layer checks name the first instruction that makes them, by module, call and token, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.judging import judged, recipe_of, trace_conversation
from verifier.artifact.program import open_artifact
from verifier.audit.inventory import take_inventory
from verifier.audit.run import audit_weights
from verifier.families.checkpoint import Checkpoint
from verifier.families.registry import open_family
from verifier.faults.surgery import change_bytes, find_constants
from verifier.ladder.blocks import find_taps
from verifier.ladder.replay import Replayer
from verifier.ladder.trace import read_trace

pytestmark = pytest.mark.xdist_group("faults")


def _set(pte: Path, span: Any, index: int, value: float) -> None:
    """One fp32 number of a constant."""

    def change(raw: np.ndarray) -> np.ndarray:
        numbers = raw.view(np.float32).copy()
        numbers[index] = value
        return numbers

    change_bytes(pte, span, change)


def _blame(report: dict[str, Any]) -> tuple[str, str, list[int], str]:
    assert report["verdict"] == "fail"
    blame = report["blame"]
    return blame["check"], blame["module"], blame["index"], blame["message"]


def test_overflow_in_one_token_of_one_layer_of_one_call_is_named(
    victim: Path, micro_model: Path, micro: Checkpoint, tmp_path: Path
) -> None:
    """One finite norm weight so large that exactly one token's product with it is beyond fp32, in the decoder's first call."""
    traced = trace_conversation(victim, micro_model, micro, tmp_path / "trace")
    artifact, norm = open_artifact(victim), "text_decoder.layers.1.ffn_norm"
    taps = find_taps(artifact, audit_weights(artifact, open_family(micro), recipe_of(micro_model)))
    replayer, read = Replayer(artifact, watched=taps.watched()), taps.reads[norm]
    for call, trace in zip(traced.calls, read_trace(traced.folders[0]), strict=True):
        replayer.call(call.method, list(call.inputs), trace)
    tapped = replayer.tapped
    calls = [
        number for number, index in sorted(tapped) if index == read and traced.calls[number].method == "text_decoder"
    ]
    streams = [tapped[number, read].reshape(-1, tapped[number, read].shape[-1]).double() for number in calls]
    eps = micro.geometry.text.norm_eps
    normed = [(x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()).abs().numpy() for x in streams]
    first, others = normed[0], np.concatenate(normed[1:])
    two = np.sort(first, 0)[-2:]
    lead = two[1] / np.maximum(two[0], others.max(0))
    channel = int(lead.argmax())
    assert lead[channel] > 1.01, "no channel has its largest value in the first call"
    token, tokens = int(first[:, channel].argmax()), len(first)
    constant = find_constants(victim, micro)[f"{norm}.weight"]
    _set(
        victim,
        constant.value.constant,
        channel,
        float(np.finfo(np.float32).max / (two[1][channel] / lead[channel] ** 0.5)),
    )
    check, module, index, message = _blame(judged(victim, micro_model, "layers.*"))
    assert (check, module, index[-2:]) == ("layers.finite", norm, [token, channel]), message
    assert f"in call {calls[0]} [" in message and "] gives inf at" in message
    assert f"at token {token} of {tokens}" in message
    assert "no operand has such a value: the program overflows" in message


def test_nan_at_one_position_is_named(victim: Path, micro_model: Path) -> None:
    """One number of the rotation table: only the token at that position sees it, in whatever call."""
    rope = next(c for c in take_inventory(open_artifact(victim)) if c.role == "rope")
    _set(victim, rope.value.constant, 7 * rope.shape[1], np.nan)
    check, module, index, message = _blame(judged(victim, micro_model, "layers.*"))
    assert (check, 7 in index) == ("layers.finite", True), message
    assert module.startswith("text_decoder")
    assert "token 7 of" in message
    assert "is not finite: see weights.*" in message


def test_infinite_norm_weight_is_named(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """inf in a weight is no mask; what follows inherits it and is not blamed first."""
    constant = find_constants(victim, micro)["text_decoder.layers.1.ffn_norm.weight"]
    _set(victim, constant.value.constant, 5, np.inf)
    report = judged(victim, micro_model, "layers.*")
    check, module, index, message = _blame(report)
    assert (check, module, index[-1]) == ("layers.finite", "text_decoder.layers.1.ffn_norm", 5), message
    assert re.search("gives -?inf at token 0 of", message)
    later = [c for c in report["checks"] if c["id"] == "layers.kernel" and c["verdict"] == "fail"]  # type: ignore[union-attr,index]
    assert later == []


def test_nan_in_a_norm_of_the_vision_tower_is_named(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """int8 behind it hides the NaN from everything that comes later: only where it arises can it be seen."""
    norm = "vision_encoder.tower.layers.0.norm2"
    constant = find_constants(victim, micro)[f"{norm}.weight"]
    _set(victim, constant.value.constant, 3, np.nan)
    check, module, index, message = _blame(judged(victim, micro_model, "layers.*"))
    assert (check, module, index[-1]) == ("layers.finite", norm, 3), message
    assert "gives nan at row 0" in message


def test_nan_in_one_embedding_row_is_named(victim: Path, micro_model: Path) -> None:
    """The scale of one group of one token that a golden prompt uses."""
    scales = next(c for c in take_inventory(open_artifact(victim)) if c.role == "embedding scales")
    golden = json.loads((micro_model / "golden.json").read_text())
    token = int(golden["images"][0]["ids"][0])
    _set(victim, scales.value.constant, token * scales.shape[1], np.nan)
    judged(victim, micro_model, "layers.*")
    text = (victim.parent / "report" / "report.json").read_text()
    check, module, index, message = _blame(json.loads(text, parse_constant=_refused))
    assert (check, module) == ("layers.finite", "token_embedding")
    assert index[-1] == 0
    assert f"gives nan at token {index[1]}, {index} and 31 more" in message


def _refused(name: str) -> None:
    raise AssertionError(f"{name} stands in report.json")


@pytest.fixture
def clean(micro_model: Path) -> Callable[[], dict[str, Any]]:
    """The sound side."""
    return lambda: judged(micro_model / "model.pte", micro_model, "layers.finite")


def test_masks_of_a_sound_program_pass(clean: Callable[[], dict[str, Any]]) -> None:
    """A program without custom attention or with it: infinities come from its masks alone."""
    report = clean()
    assert report["verdict"] == "pass"
    assert {check["verdict"] for check in report["checks"]} == {"pass"}
