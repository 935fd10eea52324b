"""Limits of results whose sums ran in another order: a count of ties, or the price of rounding where it was measured."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from verifier.checks.bands import TIES, ties_leave_a_difference, up_to_ties, whole
from verifier.checks.check import Fields, check, failed, one_case, passed
from verifier.core.types import Missing
from verifier.ladder.limits import chunk_limit_db, reordered_limit_db

NOT_MEASURED = Missing("no check asked for it", "unasked")


def test_the_price_of_rounding_decides_only_where_it_was_measured() -> None:
    """A count of ties holds without it; with it the limit is the lower of the two, and never a higher one."""
    text = SimpleNamespace(width=4096, layers=32)
    counted = chunk_limit_db(text.width, text.layers)
    for rounding_db, wanted in ((30.0, reordered_limit_db(30.0)), (90.0, counted), (NOT_MEASURED, counted)):
        evidence: Any = SimpleNamespace(geometry=SimpleNamespace(text=text), rounding_db=rounding_db)
        allowed = up_to_ties(evidence)
        assert allowed(counted + 1).value == pytest.approx(counted)
        assert allowed(20.0).value == pytest.approx(wanted)
        assert allowed(math.nan).value == pytest.approx(wanted)


def test_only_a_difference_beyond_ties_asks_for_the_price_of_rounding() -> None:
    """A result that a count of ties explains does not, nor one that could not be compared."""

    def asks(sqnr_db: float, *, allowed: bool = True) -> bool:
        fields: Fields = {"measured": {"sqnr_db": sqnr_db}, "allowed": {"sqnr_db": 32.0} if allowed else {}}
        finding = passed("", fields) if sqnr_db > 32 else failed("", fields)
        one = check("a.b", step="kernel", needs=whole, cases=one_case, limit=TIES)(lambda _given, _case: finding)
        return ties_leave_a_difference([one], SimpleNamespace(subjects=None))  # type: ignore[arg-type]

    assert [asks(40.0), asks(20.0), asks(20.0, allowed=False)] == [False, True, False]
