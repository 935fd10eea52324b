"""A checkpoint as a hub has it, without golden data: what needs none is verified, what needs some says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.gate.cases import without_golden_data
from tests.support import EMBEDDED_PTE, verify
from verifier.checks.registry import CHECKS
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import change_bytes, find_constants


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """llava_tiny without golden.json, tolerances.json and pictures."""
    return without_golden_data(tmp_path / "bare")


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """The embedded program without its manifest."""
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "llava.pte"))


def test_whole_gate_names_the_checks_that_compare_golden_answers(
    capsys: pytest.CaptureFixture[str], bare: Path, pte: Path
) -> None:
    """Exit 2 before any work, with both ways out."""
    assert verify(pte, "--model", str(bare)) == 2
    said = capsys.readouterr().err
    assert "no golden.json" in said
    assert "greedy.golden" in said
    assert "verifier.golden add" in said


def test_weights_are_verified_without_golden_data(bare: Path, pte: Path) -> None:
    """Nothing in a golden answer is needed to compare bytes: exit 0, and 1 for a changed one."""
    assert verify(pte, "--model", str(bare), "--checks", "weights.*") == 0
    constant = find_constants(pte, open_checkpoint(str(bare)))["text_decoder.norm.weight"].value.constant
    assert constant is not None
    change_bytes(pte, constant, lambda raw: raw ^ 1)
    assert verify(pte, "--model", str(bare), "--checks", "weights.*") == 1


def test_layers_and_cache_are_compared_on_a_picture_of_our_own(bare: Path, pte: Path, tmp_path: Path) -> None:
    """The runtime is compared instruction by instruction; only checks with calibrated bands are errors, and say which file they lack."""
    report = tmp_path / "report.json"
    status = verify(pte, "--model", str(bare), "--checks", "layers.*", "--json", str(report))
    results = json.loads(report.read_text())["checks"]
    lacking = {result["id"] for result in results if result["verdict"] == "error"}
    assert status == 2
    assert lacking == {"layers.vision", "layers.profile"}
    assert all(result["verdict"] == "pass" for result in results if result["id"] not in lacking)
    assert all("tolerances.json" in result["message"] for result in results if result["id"] in lacking)


def test_checks_that_need_no_golden_data_are_named_once() -> None:
    """A check of every image needs golden data; one of the bytes or of the layers does not."""
    needing = {check.id for check in CHECKS if check.golden}
    assert {"greedy.golden", "logits.distribution", "splice.tokens"} <= needing
    assert not any(id.startswith(("weights.", "layers.", "kvcache.", "structure.", "mapping.")) for id in needing)
