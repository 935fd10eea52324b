"""What a person reads when the run ends: the ladder, and a panel of at most twenty lines with the verdict and the first wrong place."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from verifier.report.as_json import Report
from verifier.report.words import closest, golden_line, one_line, summary_lines

STYLE = {"pass": "green", "fail": "red", "error": "yellow", "skipped": "dim"}
PLAIN_WIDTH = 110
PANEL_LINES = 20
"""Of the panel with its frame."""
_SHOWN = 5


def _ladder(data: Report) -> Table:
    table = Table("step", "verdict", "compared", "closest to its limit", box=None, padding=(0, 2, 0, 0))
    for rung in data["rungs"]:
        word = "not run" if rung["verdict"] == "skipped" else rung["verdict"]
        compared = str(rung["compared"]) if rung["compared"] else ""
        table.add_row(rung["step"], Text(word, STYLE[rung["verdict"]]), compared, Text(closest(rung), "dim"))
    return table


def _families(data: Report) -> Table:
    table = Table("check", "pass", "fail", "error", "skipped", box=None, padding=(0, 2, 0, 0))
    for name in dict.fromkeys(check["id"] for check in data["checks"]):
        counts = Counter(check["verdict"] for check in data["checks"] if check["id"] == name)
        row = [
            Text(str(counts[v]) if counts[v] else "·", STYLE[v] if counts[v] else "dim")
            for v in ("pass", "fail", "error", "skipped")
        ]
        table.add_row(name, *row)
    return table


def panel_lines(data: Report, width: int) -> list[str]:
    """The panel's text, wrapped to `width` columns and cut to what fits into `PANEL_LINES`; the command to run next is never cut."""
    lines = summary_lines(data)[1:]
    wrapped = [textwrap.wrap(line, width, break_on_hyphens=False) for line in lines]
    room, last = PANEL_LINES - 2, wrapped[-1] if data["blame"] is not None else []
    body = [row for rows in (wrapped[:-1] if last else wrapped) for row in rows]
    if len(body) + len(last) > room:
        body = [*body[: room - len(last) - 1], "… (the rest is in the report)"]
    return [*body, *last]


def print_report(data: Report, console: Console | None = None, *, verbose: bool = False) -> None:
    """Print ladder and verdict; `verbose` adds a line for each check, and every failure."""
    console = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    artifact, checkpoint, target = data["artifact"], data["checkpoint"], data["target"]
    console.print(
        f"{artifact['path']}  {artifact['bytes'] / 1e6:.2f} MB  sha256 {artifact['sha256'][:16]}…  recipe {artifact['recipe']['name']}",
        highlight=False,
        markup=False,  # a path may have brackets
    )
    golden = f"{golden_line(data)}\n" if golden_line(data) else ""
    console.print(
        f"checkpoint {checkpoint['id']} {checkpoint['sha256'][:16]}…  target {target['name']} ({target['isa']})\n"
        + golden,
        highlight=False,
        markup=False,
    )
    if verbose:
        console.print(_families(data))
        console.print()
    console.print(_ladder(data))
    for exception in data.get("exceptions", []):
        said = f"\nby design [{one_line(exception['check'])} {one_line(exception['case'])}]: {one_line(exception['message'])}"
        console.print(Text(said), highlight=False)
    _print_others(data, console, verbose=verbose)
    style = STYLE[data["verdict"]]
    lines = panel_lines(data, console.width - 4)
    console.print()
    console.print(
        Panel(
            Text("\n".join(lines)),
            title=Text(summary_lines(data)[0], f"bold {style}"),
            border_style=style,
            title_align="left",
        )
    )
    cost = data["cost"]
    console.print(
        f"{cost['wall_s']:.1f} s, peak memory {cost['peak_rss_bytes'] / 2**30:.2f} GiB", style="dim", highlight=False
    )


def _print_others(data: Report, console: Console, *, verbose: bool) -> None:
    """What failed besides the check to blame."""
    blame = data["blame"]
    first = (blame["check"], blame["case"]) if blame else None
    bad = [c for c in data["checks"] if c["verdict"] in ("fail", "error") and (c["id"], c["case"]) != first]
    if not bad:
        return
    shown = bad if verbose else bad[:_SHOWN]
    console.print(f"\nalso ({len(bad)}):", highlight=False)
    for check in shown:
        said = f"  {check['id']} [{check['case']}] {check['verdict']}: {check['message']}"
        console.print(Text(said, STYLE[check["verdict"]]), highlight=False)
    if len(bad) > len(shown):
        console.print(
            f"  … and {len(bad) - len(shown)} more; --verbose prints them, --report DIR writes them", highlight=False
        )
