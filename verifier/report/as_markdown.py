"""A summary in Markdown, for the page of a CI run, and annotations for GitHub's checks."""

from __future__ import annotations

import re
from pathlib import Path

from verifier.core.errors import UsageError
from verifier.core.types import STEP_MEANS
from verifier.report.as_json import Report
from verifier.report.words import (
    EYES_HEADINGS,
    blamed,
    closest,
    eyes_rows,
    golden_line,
    meaning,
    next_command,
    said,
    title,
)

SIGN = {"pass": "✅", "fail": "❌", "error": "⚠️", "skipped": "➖"}
ANNOTATIONS = 10
"""GitHub shows no more errors of one step."""
_LISTED = 20


def plain(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~$@!])", r"\\\1", line.replace("&", "&amp;"))


def _code(text: str) -> str:
    """A code block that its content cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def markdown(data: Report) -> str:
    """The summary: verdict and blame, the ladder, what failed."""
    lines = [f"## {SIGN[data['verdict']]} {plain(title(data))}", "", plain(meaning(data)), ""]
    if data["blame"] is not None:
        lines += [f"**{plain(blamed(data))}**", "", plain(said(data)), ""]
        lines += [f"Step *{data['blame']['step']}*: {plain(STEP_MEANS[data['blame']['step']])}.", ""]
        lines += ["What to run next:", "", _code(next_command(data)), ""]
    lines += ["| step | verdict | compared | closest to its limit |", "|---|---|---|---|"]
    for rung in data["rungs"]:
        word = "not run" if rung["verdict"] == "skipped" else rung["verdict"]
        lines.append(
            f"| {rung['step']} | {SIGN[rung['verdict']]} {word} | {rung['compared']} | {plain(closest(rung))} |"
        )
    lines += ["", *_failed(data)]
    lines += _eyes(data)
    for exception in data.get("exceptions", []):
        lines += [
            f"By design ({plain(exception['check'])} {plain(exception['case'])}): {plain(exception['message'])}",
            "",
        ]
    if golden := golden_line(data):
        lines += [plain(golden[0].upper() + golden[1:]) + ".", ""]
    artifact, cost = data["artifact"], data["cost"]
    lines.append(
        f"{artifact['bytes']:,} bytes, SHA-256 `{artifact['sha256']}`, recipe {plain(artifact['recipe']['name'])}, "
        f"target {plain(data['target']['name'])} ({plain(data['target']['isa'])}); "
        f"{cost['wall_s']:.0f} s, {cost['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    return "\n".join(lines) + "\n"


def _eyes(data: Report) -> list[str]:
    rows = eyes_rows(data)
    if not rows:
        return []
    lines = [
        "<details><summary>What the apps' eyes see</summary>",
        "",
        plain(data["figures"]["eyes"]["pictures"]) + ".",
        "",
    ]
    lines += [f"| {' | '.join(EYES_HEADINGS)} |", "|---" * len(EYES_HEADINGS) + "|"]
    lines += [f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows]
    return [*lines, "", "</details>", ""]


def _failed(data: Report) -> list[str]:
    bad = [check for check in data["checks"] if check["verdict"] in ("fail", "error")]
    if not bad:
        return []
    lines = [f"<details><summary>{len(bad)} of {len(data['checks'])} checks did not pass</summary>", ""]
    lines += ["| check | case | | message |", "|---|---|---|---|"]
    for check in bad[:_LISTED]:
        cells = (check["id"], check["case"], f"{SIGN[check['verdict']]} {check['verdict']}", check["message"])
        lines.append("| " + " | ".join(cell if at == 2 else plain(cell) for at, cell in enumerate(cells)) + " |")
    if len(bad) > _LISTED:
        lines.append(f"| … | | | and {len(bad) - _LISTED} more |")
    return [*lines, "", "</details>", ""]


def append(text: str, path: Path) -> None:
    """Add a summary to a file that other steps of a CI run write to, too. Raises `UsageError`."""
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise UsageError("the summary cannot be written", got=error, where=path) from error


def github_annotations(data: Report) -> list[str]:
    """GitHub workflow commands, the check to blame first; a notice if all is well."""
    if data["verdict"] == "pass":
        return [f"::notice title={_property(title(data))}::{_data(meaning(data))}"]
    blame = data["blame"]
    bad = [check for check in data["checks"] if check["verdict"] in ("fail", "error")]
    first = (blame["check"], blame["case"]) if blame else None
    bad.sort(key=lambda check: (check["id"], check["case"]) != first)
    lines = [
        f"::{'error' if check['verdict'] == 'fail' else 'warning'} title={_property(check['id'] + ' ' + check['case'])}::{_data(check['message'])}"
        for check in bad[: ANNOTATIONS - 1]
    ]
    return lines or [f"::error title={_property(title(data))}::{_data(meaning(data))}"]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
