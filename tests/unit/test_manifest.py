"""The manifest beside a `.pte` says what the checkpoint's tokenizer does around special tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from verifier.core.errors import ManifestError
from verifier.export.manifest import read_manifest, write_manifest
from verifier.families.checkpoint import EMBEDDED
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.tokenizer_forms import rewrite


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """Where a program would lie, with the embedded one's manifest."""
    shutil.copy(EMBEDDED / "llava_tiny.manifest.json", tmp_path / "llava_tiny.manifest.json")
    return tmp_path / "llava_tiny.pte"


def test_embedded_manifest_has_the_rule(pte: Path) -> None:
    """As the tokenizer has it, and as it is written again."""
    made = read_manifest(pte)
    assert made is not None
    assert made.prompt_rule == Tokenizer(EMBEDDED).rule.as_json()
    write_manifest(made, pte)
    assert read_manifest(pte) == made


def test_manifest_from_before_the_rule_stays_valid(pte: Path) -> None:
    """No field, no rule, and none is written."""
    rewrite(pte.with_suffix(".manifest.json"), lambda data: data.pop("prompt_rule"))
    made = read_manifest(pte)
    assert made is not None
    assert made.prompt_rule is None
    written = write_manifest(replace(made, prompt_rule=None), pte)
    assert "prompt_rule" not in json.loads(written.read_text())


def test_rule_that_is_none_is_refused(pte: Path) -> None:
    """A field of another kind."""
    rewrite(pte.with_suffix(".manifest.json"), lambda data: data.update(prompt_rule=[1]))
    with pytest.raises(ManifestError, match="prompt_rule"):
        read_manifest(pte)
