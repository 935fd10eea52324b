"""What the tests of faults wound: a copy of the micro program."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from verifier.measures.evidence import Evidence
from verifier.record.judging import kept


@pytest.fixture
def victim(micro_model: Path, tmp_path: Path) -> Path:
    """A copy of the micro program without its manifest."""
    return Path(shutil.copy(micro_model / "model.pte", tmp_path / "victim.pte"))


@pytest.fixture(scope="session")
def gathered(report_folder: Path) -> Evidence:
    """The evidence of the embedded program, to be broken in memory."""
    return replace(kept(report_folder / "evidence").evidence, user_case=None)
