"""Only what is clean without bands may give bands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verifier.checks.check import ALL_IMAGES, run_checks
from verifier.checks.registry import select
from verifier.commands.variants import CLEAN, require_clean
from verifier.core.errors import GoldenError
from verifier.core.types import Missing
from verifier.families.conventions import DECODER
from verifier.ladder.evidence import LayerEvidence
from verifier.measures.evidence import Evidence

pytestmark = pytest.mark.xdist_group("faults")
HAVING = frozenset({ALL_IMAGES})


def test_sound_file_is_clean(gathered: Evidence) -> None:
    """Whether or not it was calibrated before: its old bands do not decide about new ones."""
    bare = replace(gathered, tolerances=Missing("nobody made any", "verifier"))
    for evidence in (gathered, bare):
        require_clean(evidence, HAVING)
    results = run_checks(select(CLEAN, HAVING), bare, foreign=False, unsound="")
    assert {result.verdict for result in results} == {"pass"}
    assert {result.id for result in results} >= {"weights.tensors", "layers.graph", "layers.vision", "embedding.tokens"}


def test_file_that_departs_from_its_own_rung_is_not_clean(gathered: Evidence) -> None:
    """A block that does not add what the eager quantized model adds: named, with the file, however wide a band would become."""
    assert isinstance(gathered.layers, LayerEvidence)
    blocks = tuple(
        replace(block, sqnr_db=10.0) if block.block == f"{DECODER}.layers.2.feed_forward" else block
        for block in gathered.layers.blocks
    )
    broken = replace(gathered, layers=replace(gathered.layers, blocks=blocks))
    with pytest.raises(GoldenError, match="not clean") as refused:
        require_clean(broken, HAVING)
    assert "layers.graph [text_decoder.layers.2.feed_forward]" in str(refused.value)
    assert "llava_tiny.pte" in str(refused.value)


def test_file_without_answers_is_not_clean(gathered: Evidence) -> None:
    """Its logits are no numbers."""
    cases = tuple(
        replace(case, logits=None if case.logits is None else case.logits * float("nan")) for case in gathered.cases
    )
    with pytest.raises(GoldenError, match="logits"):
        require_clean(replace(gathered, cases=cases), HAVING)
