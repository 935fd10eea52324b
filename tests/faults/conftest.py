"""What the tests of faults wound: a copy of the micro program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def victim(micro_model: Path, tmp_path: Path) -> Path:
    """A copy of the micro program without its manifest."""
    return Path(shutil.copy(micro_model / "model.pte", tmp_path / "victim.pte"))
