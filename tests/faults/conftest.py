"""What the tests of faults wound: a copy of the micro program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from verifier.evidence import Evidence


@pytest.fixture
def victim(micro_model: Path, tmp_path: Path) -> Path:
    """A copy of the micro program without its manifest."""
    return Path(shutil.copy(micro_model / "model.pte", tmp_path / "victim.pte"))


@pytest.fixture(scope="session")
def gathered() -> Evidence:
    """The evidence of the embedded program, to be broken in memory."""
    from verifier.gather import gather
    from verifier.opening import Request, open_request
    from verifier.progress import Progress, hushed

    families = ("preprocess", "splice", "vision", "embedding", "logits", "greedy")
    with hushed():
        checks = tuple(
            f"{family}.*"
            for family in (*families, "structure", "mapping", "kvcache", "threads", "weights", "layers", "tokenizer")
        )
        return gather(open_request(Request(EMBEDDED_PTE, checks=checks)), Progress(quiet=True))[0]
