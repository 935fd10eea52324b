"""The page of all checks is what their docstrings say now."""

from __future__ import annotations

from pathlib import Path

from verifier.checks.reference import reference
from verifier.checks.registry import CHECKS
from verifier.checks.tolerances import written
from verifier.core.limits import LIMITS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checks.md"


def test_page_of_checks_is_up_to_date() -> None:
    """`make checks-reference` would change nothing; every check says what must hold."""
    text = reference()
    assert PAGE.read_text() == text, "run make checks-reference"
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert list(rows) == [check.id for check in CHECKS]
    assert all(len(row.split("|")[3].strip()) > 20 for row in rows.values())


def test_tables_of_limits_are_up_to_date() -> None:
    """`make checks-reference` would change nothing; every limit stands there once, with a reason."""
    page = PAGE.with_name("tolerances.md").read_text()
    assert written(page) == page, "run make checks-reference"
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(LIMITS)
    assert all(len(row.why.split()) > 1 for row in LIMITS.values())
