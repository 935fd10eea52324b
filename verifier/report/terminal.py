"""What a person reads when the run ends: the verdict, the ladder, and the first thing that is wrong."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from verifier.pipeline import Run

STYLE = {"pass": "green", "fail": "red", "error": "yellow", "skipped": "dim"}
TITLE = {"pass": "VERIFIED", "fail": "FAILED", "error": "NOT VERIFIED"}
MEANING = {
    "pass": "These bytes still compute the checkpoint. They may ship.",
    "fail": "These bytes do not compute the checkpoint. Do not ship them.",
    "error": "Nothing is known for certain: something needed for the verdict is missing.",
}
PARTLY = "What was checked is right. The rest was left out on request: this alone is no ground to ship."
_SHOWN = 5


def summary_lines(run: Run) -> list[str]:
    """The verdict as plain lines: what, where, what to do."""
    judgement, blame = run.judgement, run.judgement.blame
    title, meaning = TITLE[judgement.verdict], MEANING[judgement.verdict]
    if judgement.verdict == "pass" and run.partial:
        title, meaning = "VERIFIED IN PART", PARTLY
    lines = [f"{title}: {run.artifact.name} ({judgement.reason})", meaning]
    if blame is not None:
        place = blame.where
        named = [str(part) for part in (place.method, place.module, place.index) if part] if place else []
        lines += [
            f"first: {blame.id} [{blame.case}], step {blame.step}" + (f", in {' '.join(named)}" if named else ""),
            blame.message,
        ]
    return lines


def _ladder(run: Run) -> Table:
    table = Table("step", "verdict", "compared", "closest to its limit", box=None, padding=(0, 2, 0, 0))
    for rung in run.judgement.rungs:
        style = STYLE[rung.verdict]
        worst = ""
        if rung.worst:
            worst = f"{rung.worst['metric']} {_number(rung.worst['value'])}, allowed {_number(rung.worst['allowed'])} ({rung.worst['where']})"
        word = "not run" if rung.verdict == "skipped" else rung.verdict
        table.add_row(rung.step, Text(word, style), str(rung.compared) if rung.compared else "", Text(worst, "dim"))
    return table


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _families(run: Run) -> Table:
    table = Table("check", "pass", "fail", "error", "skipped", box=None, padding=(0, 2, 0, 0))
    ids = list(dict.fromkeys(result.id for result in run.results))
    for name in ids:
        counts = Counter(result.verdict for result in run.results if result.id == name)
        row = [
            Text(str(counts[v]) if counts[v] else "·", STYLE[v] if counts[v] else "dim")
            for v in ("pass", "fail", "error", "skipped")
        ]
        table.add_row(name, *row)
    return table


def print_run(run: Run, console: Console | None = None) -> None:
    """Print families, ladder and verdict."""
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    console.print(
        f"{run.artifact.path}  {run.artifact.header.file_bytes / 1e6:.2f} MB  sha256 {run.artifact.sha256[:16]}…  recipe {run.recipe.name}",
        highlight=False,
    )
    console.print(
        f"checkpoint {run.checkpoint.name} {run.checkpoint.sha256[:16]}…  target {run.target['name']} ({run.target['isa']})\n",
        highlight=False,
    )
    console.print(_families(run))
    console.print()
    console.print(_ladder(run))
    bad = [r for r in run.results if r.verdict in ("fail", "error") and r is not run.judgement.blame]
    if bad:
        console.print(f"\nalso ({len(bad)}):", highlight=False)
        for result in bad[:_SHOWN]:
            console.print(
                Text(f"  {result.id} [{result.case}] {result.verdict}: {result.message}", STYLE[result.verdict]),
                highlight=False,
            )
        if len(bad) > _SHOWN:
            console.print(f"  … and {len(bad) - _SHOWN} more; --report DIR writes them all", highlight=False)
    style = STYLE[run.judgement.verdict]
    lines = summary_lines(run)
    body = Text("\n".join(lines[1:]))
    console.print()
    console.print(Panel(body, title=Text(lines[0], f"bold {style}"), border_style=style, title_align="left"))
    console.print(f"{run.wall_s:.1f} s, peak memory {run.peak_rss_bytes / 2**30:.2f} GiB", style="dim", highlight=False)
