"""Programs of other exporters through the whole command, without a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import OPTIMUM_PTE, UPSTREAM_PTE, verify

CHECKS = "structure.*,splice.prompts,kvcache.history,kvcache.poison,kvcache.rows,kvcache.mask,kvcache.memory"


@pytest.mark.parametrize(
    ("pte", "limits", "exceptions"),
    [(OPTIMUM_PTE, [], ["structure.limits"]), (UPSTREAM_PTE, ["structure.limits"], [])],
    ids=["optimum", "upstream"],
)
def test_a_foreign_program_fails_by_its_true_limit_alone(
    pte: Path, limits: list[str], exceptions: list[str], tmp_path: Path
) -> None:
    """What it declares, its prompts and its cache: the one limit that is a runner's trouble fails, the one that an app can live with is said."""
    status = verify(pte, "--checks", CHECKS, "--report", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == (1 if limits else 0)
    assert [check["id"] for check in report["checks"] if check["verdict"] in ("fail", "error")] == limits
    assert [exception["check"] for exception in report["exceptions"]] == exceptions
    assert len(report["checks"]) > 20
