"""Every check is fed NaN, infinity, a wrong shape and nothing: none passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.poisons import KINDS, POISONS
from verifier.checks.check import Check
from verifier.checks.registry import CHECKS
from verifier.core.errors import VerifierError
from verifier.core.limits import Limit
from verifier.core.types import Missing
from verifier.measures.evidence import Evidence

PRICED = [
    check
    for check in CHECKS
    if check.id.startswith(("vision.", "logits.", "embedding.")) or check.id in ("layers.price", "layers.profile")
]
pytestmark = pytest.mark.xdist_group("faults")


def test_every_check_has_a_row() -> None:
    """A new check says what poisons it: add a row to POISONS in tests/faults/poisons.py (CONTRIBUTING.md)."""
    assert [check.id for check in CHECKS if check.id not in POISONS] == []
    assert sorted(POISONS.keys() - {check.id for check in CHECKS}) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_poison_never_passes(check: Check, kind: str, gathered: Evidence) -> None:
    """A failure or an error, in words, or no result at all, which is a hole."""
    row = POISONS[check.id]
    poison = getattr(row, kind)
    if isinstance(poison, str):
        assert len(poison.split()) > 2
        return
    try:
        results = check.results(poison(gathered))
    except VerifierError:
        return  # not verified
    passed = [result for result in results if result.verdict == "pass" and row.only(result.case)]
    assert passed == []
    assert all(result.message for result in results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", PRICED, ids=[check.id for check in PRICED])
def test_poison_never_passes_a_budget(check: Check, kind: str, gathered: Evidence) -> None:
    """Where nothing was calibrated, budgets judge: sound evidence passes, and what is no number does not."""
    bare = replace(gathered, tolerances=Missing("this recipe was never calibrated", "verifier"))
    assert {result.verdict for result in check.results(bare)} == {"pass"}
    poison, only = getattr(POISONS[check.id], kind), POISONS[check.id].only
    if isinstance(poison, str):
        return
    assert [r for r in check.results(poison(bare)) if r.verdict == "pass" and only(r.case)] == []


@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_a_check_judges_with_the_limits_that_it_names(
    check: Check, gathered: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what a file or a record states for this very check."""
    used: set[str] = set()
    admits = Limit.admits

    def recorded(self: Limit, value: float) -> bool:
        used.add(self.id)
        return admits(self, value)

    monkeypatch.setattr(Limit, "admits", recorded)
    check.results(gathered)
    assert used <= {*check.limit, check.id}
