"""The verdict in words, for every form of the report: what, where, what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from verifier.core.records import JsonObject
from verifier.report.as_json import Report
from verifier.report.headline import headline

TITLE = {"pass": "VERIFIED", "fail": "FAILED", "error": "NOT VERIFIED"}
MEANING = {
    "pass": "These bytes still compute the checkpoint. They may ship.",
    "error": "Nothing is known for certain: something needed for the verdict is missing.",
}
PARTLY = "What was checked is right. The rest was left out on request: this alone is no ground to ship."


def one_line(text: object) -> str:
    """Text without line breaks: a file's name must not begin a line of a log by itself."""
    return " ".join(str(text).split())


def title(data: Report) -> str:
    """Verdict and file."""
    name = one_line(Path(data["artifact"]["path"]).name)
    said = "VERIFIED IN PART" if data["verdict"] == "pass" and data["partial"] else TITLE[data["verdict"]]
    reason = data.get("reason")
    return f"{said}: {name}" + (f" ({reason})" if reason else "")


def meaning(data: Report) -> str:
    """What the verdict says about shipping; of a failure, who is at fault and whether the bytes may be right."""
    if data["verdict"] == "fail":
        return headline(data["checks"])
    return PARTLY if data["verdict"] == "pass" and data["partial"] else MEANING[data["verdict"]]


def golden_line(data: Report) -> str:
    """Where the golden answers came from, if not from the checkpoint's folder; nothing if they did, or if nothing asked for any."""
    made = data.get("goldens") or {}
    if made.get("source") != "package" or not made.get("computed", 0) + made.get("kept", 0):
        return ""
    line = f"no golden.json: {made['images']} pictures of the package, answered by the fp32 reference ({made['computed']} now, {made['kept']} kept in {made['cache']})"
    return one_line(line + (f"; not kept: {made['problem']}" if made["problem"] else ""))


def place(blame: JsonObject) -> str:
    """Method, module and index of the first wrong place."""
    method, module = blame.get("method"), blame.get("module")
    parts = [None if method and str(module).startswith(method) else method, module]
    if blame.get("module") is None and blame.get("instruction") is not None:
        parts.append(f"instruction {blame['instruction']}")
    if blame.get("index"):
        parts.append(str(list(blame["index"])))
    return " ".join(str(part) for part in parts if part)


def closest(rung: JsonObject) -> str:
    """What came closest to its limit in a step; nothing if nothing has a numeric one."""
    worst = rung["worst"]
    if worst is None:
        return ""
    return f"{worst['metric']} {number(worst['value'])}, allowed {number(worst['allowed'])} ({worst['where']})"


def blamed(data: Report) -> str:
    """The first check that failed, its step and its place, in one line; nothing if there is none."""
    blame = data["blame"]
    if blame is None:
        return ""
    where = one_line(place(blame))
    return f"first: {one_line(blame['check'])} [{one_line(blame['case'])}], step {blame['step']}" + (
        f", in {where}" if where else ""
    )


def said(data: Report) -> str:
    """The message of the check to blame, without its name."""
    blame = data["blame"]
    return "" if blame is None else one_line(str(blame["message"]).removeprefix(f"{blame['check']} {blame['case']}: "))


def next_command(data: Report) -> str:
    """What to run next: the check to blame alone, with everything it can save; nothing behind a pass."""
    blame = data["blame"]
    if blame is None:
        return ""
    words = ["python", "-m", "verifier.test_pte", data["artifact"]["path"]]
    request = data.get("request") or {}
    words += ["--model", request["model"]] if request.get("model") else []
    words += ["--tokenizer", request["tokenizer"]] if request.get("tokenizer") else []
    stated = ",".join(f"{name}={value:g}" for name, value in request.get("budget", {}).items())
    words += ["--budget", stated] if stated else []
    words += ["--app", ",".join(request["apps"])] if request.get("apps") else []
    words += ["--target", request["target"]] if request.get("target", "local") != "local" else []
    words += ["--checks", blame["check"], "--report", "report"]
    return one_line(shlex.join(words))


def summary_lines(data: Report) -> list[str]:
    """The verdict as plain lines: what, where, what to do."""
    lines = [title(data), meaning(data)]
    if data["blame"] is not None:
        lines += [blamed(data), said(data), f"next: {next_command(data)}"]
    return lines


def eyes_rows(data: Report) -> list[tuple[str, ...]]:
    """The table of the apps' eyes: app, answers lost, image tokens, sizes that the program refuses; nothing if nobody looked."""
    eyes = data.get("figures", {}).get("eyes")
    return [] if eyes is None else [_eyes_row(app) for app in eyes["apps"]]


EYES_HEADINGS = ("app", "answers lost", "95 % interval", "image tokens, dB", "sizes that the program refuses")


def _eyes_row(app: JsonObject) -> tuple[str, ...]:
    name, asked = f"{app['title']} ({app['name']})", app["asked"]
    lost = f"{app['lost']} of {asked}" + (f", {app['aborts']} not fed" if app["aborts"] else "")
    low, high = app["interval"]
    tokens = "the same pixels" if app["identical"] and app["identical"] == asked else number(app["median_db"])
    sizes = f"{len(app['refused'])} of {app['sizes']}" + (
        f": {', '.join(app['refused'][:4])}" if app["refused"] else ""
    )
    if not asked:
        return name, "not looked at: name it with --app", "", "", sizes if app["tried"] else ""
    return name, lost, f"{low:.0%} to {high:.0%}", tokens, sizes if app["tried"] else "not tried"


def number(value: object) -> str:
    """A measured value, short; nothing for what was not measured."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return str(value.get("reason", value.get("value")))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
