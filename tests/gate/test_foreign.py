"""Programs of other exporters through the whole command: no manifest, no calibration of theirs, no choice of checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import FEW_IMAGES, OPTIMUM_PTE, UPSTREAM_PTE, WITHOUT_USE, verify


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
