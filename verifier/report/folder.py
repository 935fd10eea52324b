"""All forms of a report in one folder."""

from __future__ import annotations

from pathlib import Path

from verifier.report.as_json import Report, write_json, write_text
from verifier.report.as_junit import write_junit

NAMES = ("report.json", "junit.xml", "report.html", "summary.md")


def write_folder(data: Report, folder: Path) -> list[Path]:
    """Write `NAMES`, the JSON first: whatever happens to the others, it is there. Raises `UsageError`."""
    from verifier.report.as_html import write_html
    from verifier.report.as_markdown import markdown

    paths = [folder / name for name in NAMES]
    write_json(data, paths[0])
    write_junit(data, paths[1])
    write_html(data, paths[2])
    write_text(paths[3], markdown(data))
    return paths
