"""Clean programs of other shapes and recipes give no alarm: random weights, so nothing rests on what a model has learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import verify
from verifier.faults.clean import RECIPES, SHAPES
from verifier.faults.subjects import make_micro_model

UNBANDED = "weights.*,layers.coverage,layers.finite,layers.kernel,layers.constants,layers.graph"
CACHE = "kvcache.*,threads.*,splice.prompts,structure.lifetimes,structure.metadata"
MADE = RECIPES | {"shortest": ("--max-seq-len", "128", "--max-context-len", "128")}
QUICK = [("one key head", ("plain attention", "hqq", "4-bit embedding", "shortest"))]
MANY = [
    *((shape, ("default",)) for shape in SHAPES),
    *(("no sharing", (recipe,)) for recipe in RECIPES if recipe != "default"),
    ("wide", ("groups of 64", "hqq")),
    ("wide", ("plain attention", "4-bit embedding")),
    ("deep", ("hqq", "4-bit embedding")),
    ("deep", ("plain attention", "square images")),
    ("theta", ("plain attention", "short")),
    ("one key head", ("groups of 64", "fp32 embedding")),
    ("one key head", ("square images", "hqq")),
    ("wide", ("short", "square images", "hqq", "plain attention")),
]


def _verified(
    shape: str, recipes: tuple[str, ...], folder: Path, checks: str
) -> tuple[int, list[tuple[str, str, str]]]:
    """Exit status and alarms of a clean model's verification."""
    arguments = [argument for recipe in recipes for argument in MADE[recipe]]
    make_micro_model(folder, *arguments, seed=len(shape) + len(arguments), **SHAPES[shape])
    pte = folder / "model.pte"
    status = verify(pte, "--model", str(folder), "--checks", checks, "--report", str(folder))
    report = json.loads((folder / "report.json").read_text())
    alarms = [(c["id"], c["case"], c["message"]) for c in report["checks"] if c["verdict"] != "pass"]
    return status, alarms


@pytest.mark.slow  # two minutes; the wide, streamed model of test_full_size is random, too
@pytest.mark.parametrize(("shape", "recipes"), QUICK)
def test_clean_model_gives_no_alarm(shape: str, recipes: tuple[str, ...], tmp_path: Path) -> None:
    """One that differs in nearly everything; the slow test has twenty."""
    assert _verified(shape, recipes, tmp_path, f"{UNBANDED},{CACHE}") == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "recipes"), MANY)
def test_twenty_clean_models_give_no_alarm(shape: str, recipes: tuple[str, ...], tmp_path: Path) -> None:
    """GQA, other widths and depths, groups, HQQ, without custom SDPA, static image shape, embeddings."""
    assert _verified(shape, recipes, tmp_path, UNBANDED) == (0, [])
