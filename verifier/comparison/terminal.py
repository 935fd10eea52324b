"""A comparison for people: the first line says it, the table why; in Markdown the same."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verifier.comparison.compare import Comparison
from verifier.comparison.rows import Row
from verifier.report.as_markdown import plain
from verifier.report.terminal import PLAIN_WIDTH
from verifier.report.words import number

STYLE = {"better": "green", "same": "dim", "worse": "red", "changed": "cyan", "unknown": "yellow"}


def _value(value: float | str | None, unit: str) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{value:,.0f} {unit}".strip() if unit == "bytes" else f"{number(value)} {unit}".strip()


def _allowed(row: Row) -> str:
    if not isinstance(row.old, (int, float)) or not (row.noise or row.budget):
        return ""
    if row.relative:
        return f"{row.noise:.1%}, budget {row.budget:.0%}"
    return f"{number(row.noise)} {row.unit}, budget {number(row.budget)} {row.unit}".replace(" ,", ",")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the first line, the rows, and what changed."""
    console = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False)
    style = STYLE[comparison.verdict]
    console.print(Text(comparison.first_line, f"bold {style}"), highlight=False)
    table = Table("", "baseline", "candidate", "", "noise", box=None, padding=(0, 2, 0, 0))
    for row in comparison.rows:
        change = Text(row.change + (" beyond its budget" if row.beyond_budget else ""), STYLE[row.change])
        name = f"{row.subject}: {row.what}" if row.what else row.subject
        table.add_row(name, _value(row.old, row.unit), _value(row.new, row.unit), change, Text(_allowed(row), "dim"))
    console.print()
    console.print(table)
    for row in comparison.rows:
        if row.detail and row.change != "same":
            console.print()
            console.print(
                Text(f"{row.subject}{': ' + row.what if row.what else ''}", STYLE[row.change]), highlight=False
            )
            for line in row.detail:
                console.print(Text(f"  {line}"), highlight=False)


def comparison_markdown(comparison: Comparison) -> str:
    """The same as a section of a summary."""
    lines = [f"### {plain(comparison.first_line)}", "", "| | baseline | candidate | | noise |", "|---|---|---|---|---|"]
    for row in comparison.rows:
        name = f"{row.subject}: {row.what}" if row.what else row.subject
        change = row.change + (" beyond its budget" if row.beyond_budget else "")
        cells = (name, _value(row.old, row.unit), _value(row.new, row.unit), change, _allowed(row))
        lines.append("| " + " | ".join(plain(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
