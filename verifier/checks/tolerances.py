"""`python -m verifier.checks.tolerances`: the tables of docs/tolerances.md, from the one table of limits; the page's prose stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path

from verifier.core.files import replacing
from verifier.core.limits import LIMITS, Limit

BEGIN = "<!-- Written by python -m verifier.checks.tolerances from verifier/core/limits.py. Do not edit the tables. -->"
END = "<!-- End of the tables. -->"
KINDS = {
    "derived": "**Derived.** It holds for every correct implementation, whatever the model.",
    "physical": "**Physical.** It follows from the arithmetic and the assumption that is stated.",
    "measured": "**Measured.** It was seen on sound artifacts.",
    "policy": "**Policy.** It is a choice.",
}
_SIGNS = {"least": "≥", "most": "≤", "equal": "="}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(row: Limit) -> str:
    seen = f" Seen: {row.seen}." if row.seen else ""
    return f"| `{row.id}` | {_SIGNS[row.at]} {row.value:.6g} {row.unit} | {_cell(row.why)}.{_cell(seen)} |"


def tables() -> str:
    """A table for each kind of limit, in the order of `KINDS`; rows in the order of the table."""
    parts = []
    for kind, means in KINDS.items():
        rows = [_row(row) for row in LIMITS.values() if row.kind == kind]
        parts.append("\n".join([means, "", "| limit | bound | why |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def written(page: str) -> str:
    """A page with its tables as they are now. Raises `ValueError` if it has no place for them."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> None:
    """Write the tables of docs/tolerances.md of this tree."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/tolerances.md")
    made = written(path.read_text())
    with replacing(path) as temporary:
        temporary.write_text(made)


if __name__ == "__main__":
    main()
