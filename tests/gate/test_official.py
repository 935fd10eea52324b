"""The gate with ExecuTorch's own runner as the target: the ladder by the local runtime, the use by that runner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.gate.cases import copy_of_llava_tiny
from tests.support import EMBEDDED_PTE, OPTIMUM_PTE, UPSTREAM_PTE, verify
from verifier.faults.tokenizer_forms import as_transformers_4

FEW = "blank,square_0,pair_base"


def _judged(pte: Path, folder: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    verify(pte, "--target", "official", "--checks", "use.*", "--images", FEW, "--report", str(folder), *arguments)
    report = json.loads((folder / "report.json").read_text())
    assert report["target"]["name"] == "official"
    return {id: [c for c in report["checks"] if c["id"] == id] for id in {c["id"] for c in report["checks"]}}


@pytest.mark.parametrize("pte", [OPTIMUM_PTE, UPSTREAM_PTE], ids=["optimum", "upstream"])
def test_a_program_of_another_exporter_answers(pte: Path, tmp_path: Path) -> None:
    """Both conventions: pixels in bytes or normalized, one position or one for each token."""
    judged = _judged(pte, tmp_path)
    assert {c["verdict"] for checks in judged.values() for c in checks} == {"pass"}
    assert len(judged["use.answers"]) == 3


def test_the_published_tokenizer_form_needs_no_exception(tmp_path: Path) -> None:
    """A checkpoint whose tokenizer puts a blank behind the image gets from text what it gets from ids."""
    model = copy_of_llava_tiny(tmp_path / "model")
    as_transformers_4(model)
    pte = Path(shutil.copy(EMBEDDED_PTE, tmp_path / "tiny.pte"))
    judged = _judged(pte, tmp_path / "report", "--model", str(model))
    assert {c["verdict"] for checks in judged.values() for c in checks} == {"pass"}
    assert "have the checkpoint's number of tokens and its answers" in judged["use.tokens"][0]["message"]


def test_a_tokenizer_that_the_runner_does_not_read_is_named(tmp_path: Path) -> None:
    """Nothing is verified for who asked for that runner."""
    pte = Path(shutil.copy(EMBEDDED_PTE, tmp_path / "tiny.pte"))
    named = ("--tokenizer", str(EMBEDDED_PTE.with_name("tokenizer.json")))
    judged = _judged(pte, tmp_path / "report", *named)
    assert {c["verdict"] for checks in judged.values() for c in checks} == {"error"}
    assert "does not take the program with tokenizer.json" in judged["use.tokens"][0]["message"]
