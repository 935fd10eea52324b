"""Programs of other exporters through the whole command: no manifest, no calibration of theirs, no choice of checks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import FEW_IMAGES, OPTIMUM_PTE, UPSTREAM_PTE, WITHOUT_USE, verify
from verifier.core.compare import Array
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import change_bytes, find_constants


@pytest.mark.parametrize(
    ("images", "chosen", "checks"),
    [(FEW_IMAGES, WITHOUT_USE, 260), pytest.param("*", "*", 480, marks=pytest.mark.slow)],
    ids=["a few pictures", "all pictures"],
)
@pytest.mark.parametrize(
    ("pte", "limits", "noted"),
    [(OPTIMUM_PTE, [], True), (UPSTREAM_PTE, ["structure.limits", "layers.ranges"], False)],
    ids=["optimum", "upstream"],
)
def test_a_foreign_program_fails_by_its_true_limits_alone(
    pte: Path, limits: list[str], noted: bool, images: str, chosen: str, checks: int, tmp_path: Path
) -> None:
    """optimum's is verified, and the position that it lacks is said. Upstream's takes 84 tokens a call and has the int8 ranges of one picture: two checks
    fail, no other, and none could not be made. (With few pictures step `use` is left to test_official.)"""
    status = verify(pte, "--images", images, "--checks", chosen, "--report", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == (1 if limits else 0)
    assert [check["id"] for check in report["checks"] if check["verdict"] in ("fail", "error")] == limits
    assert ("structure.limits" in [exception["check"] for exception in report["exceptions"]]) == noted
    assert len(report["checks"]) > checks


def test_a_weight_between_two_linears_of_one_delegate_is_found_by_the_layers_alone(tmp_path: Path) -> None:
    """What one nibble changes is less than what ties of the activations between both linears may; the file's own constants show that there was no tie."""
    pte, report = tmp_path / "llava.pte", tmp_path / "report.json"
    shutil.copy(OPTIMUM_PTE, pte)
    constant = find_constants(pte, open_checkpoint())["text_decoder.layers.1.feed_forward.w1.weight"].value.constant
    assert constant is not None

    def flip(raw: Array) -> Array:
        raw[len(raw) // 2] ^= 1
        return raw

    change_bytes(pte, constant, flip)
    assert verify(pte, "--images", "blank", "--checks", "layers.constants,layers.kernel", "--json", str(report)) == 1
    failed = [check for check in json.loads(report.read_text())["checks"] if check["verdict"] != "pass"]
    assert [(check["id"], check["case"]) for check in failed] == [
        ("layers.constants", "text_decoder.layers.1.feed_forward")
    ]
    assert "the file's own constant gives this result, without a tie" in failed[0]["message"]
