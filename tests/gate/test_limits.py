"""Programs of other lengths, and the one without custom attention, keep the promises of the KV-cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import verify
from verifier.faults.subjects import make_micro_model

VARIANTS = {
    "128": ("--max-seq-len", "128", "--max-context-len", "128"),
    "plain": ("--no-use-sdpa-with-kv-cache",),
    "1024": ("--max-seq-len", "1024", "--max-context-len", "1024"),
    "2048": ("--max-seq-len", "2048", "--max-context-len", "2048"),
}


@pytest.mark.export
@pytest.mark.slow  # the quick test of random models makes these checks on a short program without custom attention
@pytest.mark.parametrize("name", VARIANTS)
def test_cache_keeps_its_promises(name: str, once: Callable[[str, Callable[[Path], None]], Path]) -> None:
    """Every check of cache, threads, splice and memory passes; the last position is the one that the limit says."""
    folder = once(f"limit-{name}", lambda folder: make_micro_model(folder, *VARIANTS[name]))
    checks = "kvcache.*,threads.*,splice.prompts,structure.lifetimes"
    status = verify(folder / "model.pte", "--model", str(folder), "--checks", checks, "--report", str(folder))
    report = json.loads((folder / "report.json").read_text())
    wrong = [f"{c['id']} {c['case']}: {c['message']}" for c in report["checks"] if c["verdict"] != "pass"]
    assert wrong == []
    assert status == 0
    limit = int(name) if name.isdigit() else 768
    last = next(c for c in report["checks"] if (c["id"], c["case"]) == ("kvcache.capacity", "last position"))
    assert last["where"]["index"] == [limit - 1]
