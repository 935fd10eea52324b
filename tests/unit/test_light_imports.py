"""Evidence can be judged where no model can be run: its records need none of the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "executorch", "tokenizers", "PIL")
LIGHT = (
    "verifier.artifact.program",
    "verifier.audit.records",
    "verifier.families.conventions",
    "verifier.families.llava.keymap",
    "verifier.golden",
    "verifier.ladder.evidence",
    "verifier.ladder.limits",
    "verifier.ladder.records",
    "verifier.measures.cache_rows",
    "verifier.measures.program",
    "verifier.measures.probes",
)
"""Modules that hold what checks judge."""


@pytest.mark.parametrize("module", LIGHT)
def test_module_imports_no_heavy_package(module: str) -> None:
    """In a process of its own."""
    code = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
