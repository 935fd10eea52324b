"""The gate with tokenizer files as people have them: right, or refused with the reason, and never "do not ship"."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.families.checkpoint import EMBEDDED
from verifier.faults.tokenizer_forms import as_transformers_4, rewrite

OF_TEXT = "tokenizer.*,splice.*,greedy.*,logits.*,embedding.*"
"""Checks that see the prompt's ids: layers, cache and threads are the same for every prompt."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of llava_tiny with golden data, whose tokenizer may be changed."""
    skipped = shutil.ignore_patterns("*.pte", "*.manifest.json", "make", "calibration", "__pycache__")
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model", ignore=skipped))


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """The committed program without its manifest."""
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "tiny.pte"))


@pytest.mark.parametrize("checks", [OF_TEXT, pytest.param("*", marks=pytest.mark.slow)], ids=["of text", "all"])
def test_published_form_passes(model: Path, pte: Path, checks: str) -> None:
    """A blank behind the image in every prompt; golden answers made without it hold, with fp32's margins for this prompt."""
    as_transformers_4(model)
    assert verify(pte, "--model", str(model), "--checks", checks, "--report", str(model)) == 0
    report = json.loads((model / "report.json").read_text())
    assert {c["verdict"] for c in report["checks"] if c["id"] in ("splice.tokens", "greedy.golden")} == {"pass"}
    assert report["facts"]["prompt_rule"]["behind_image"] == ["\u2581", "<0x0A>"]


def test_manifest_of_another_form_is_a_note(model: Path, tmp_path: Path) -> None:
    """The program is the same; what its manifest says of the tokenizer stands in the report."""
    as_transformers_4(model)
    pte = Path(shutil.copy(EMBEDDED_PTE, tmp_path / EMBEDDED_PTE.name))
    shutil.copy(EMBEDDED_PTE.with_suffix(".manifest.json"), tmp_path)
    checks = "structure.manifest,structure.metadata"
    assert verify(pte, "--model", str(model), "--checks", checks, "--report", str(model)) == 0
    report = json.loads((model / "report.json").read_text())
    said = next(c["message"] for c in report["checks"] if c["id"] == "structure.manifest")
    assert "it was exported with another tokenizer: then BOS in front, a newline after the image is <0x0A>" in said


def test_tokenizer_model_alone_is_refused(model: Path, pte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two readings of one file: exit 2, both named."""
    (model / "tokenizer.json").unlink()
    assert verify(pte, "--model", str(model)) == 2
    said = capsys.readouterr().err
    assert "tokenizer.model alone is read in two ways, for example 'Describe the image.'" in said
    assert "SentencePiece" in said
    assert "AutoTokenizer" in said


def test_golden_answers_to_another_prompt_are_named(model: Path, pte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers recorded for another tokenizer that fp32 does not give: exit 2 with the command that makes new ones."""
    as_transformers_4(model)
    rewrite(model / "golden.json", lambda data: data["images"][0]["ids"].__setitem__(1, 500))
    status = verify(pte, "--model", str(model), "--checks", "splice.tokens", "--images", "blank*")
    assert status == 2
    said = capsys.readouterr().err
    assert "the golden answer to blank was made with another tokenizer" in said
    assert "python -m verifier.golden update" in said
