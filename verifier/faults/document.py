"""docs/faults.md, and the figures in the README, from `docs/faults.json`: what a run of the bench saved, never by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from verifier.checks.registry import CHECKS
from verifier.core.files import replacing
from verifier.core.records import JsonObject
from verifier.core.system import cores
from verifier.export.manifest import cpu_kind, package_versions
from verifier.faults import today
from verifier.faults.bench import Outcome
from verifier.faults.catalogue import EXCEPTIONS, FAULTS
from verifier.faults.fault import KINDS, Fault
from verifier.faults.rows import ROWS

UNFAIR = {"micro": ("caption", "top1")}
"""Today's checks that a sound subject does not pass itself, measured: a random model's answers do not survive 4 bits."""
DATA, PAGE, README = "faults.json", "faults.md", "README.md"
_PATHS = re.compile(r"/(?:[\w.-]+/)+")
"""Folders of the machine that the bench ran on: nobody else's business."""
_MARKS = re.compile(r"(<!-- faults -->\n).*?(<!-- /faults -->)", re.S)


def save(folder: Path, part: str, outcomes: Sequence[Outcome], wall_s: float, workers: int) -> None:
    """Put a run (`faults`, `clean`, or `witnesses` for faults with all checks) into `faults.json` and render the page and the README's figures from it."""
    path = folder / DATA
    data: JsonObject = json.loads(path.read_text()) if path.is_file() else {}
    data[part] = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": package_versions(),
        "cpu": cpu_kind(),
        "cores": cores(),
        "workers": workers,
        "wall_s": round(wall_s),
        "outcomes": [_kept(outcome) for outcome in outcomes],
    }
    _write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    render(folder)


def _kept(outcome: Outcome) -> JsonObject:
    kept = asdict(outcome)
    said = [line for line in outcome.problem.splitlines() if line[:1].isalpha() and not line.startswith("Traceback")]
    kept |= {"message": outcome.message[:300], "place": _PATHS.sub("…", outcome.place)[:600]}
    return kept | {"wall_s": round(outcome.wall_s), "problem": said[0] if said else outcome.problem[-100:]}


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def render(folder: Path) -> None:
    """Write the page, and the figures into the README above it if it has a place for them."""
    data = json.loads((folder / DATA).read_text())
    _write(folder / PAGE, page(data))
    readme = folder.parent / README
    if readme.is_file() and _MARKS.search(text := readme.read_text()):
        _write(readme, _MARKS.sub(lambda match: match[1] + figures(data) + match[2], text))


def _pairs(data: JsonObject) -> list[tuple[Fault, Outcome]]:
    named = {fault.name: fault for fault in FAULTS}
    read = map(Outcome.read, data["faults"]["outcomes"])
    pairs = [(named[outcome.fault], outcome) for outcome in read if outcome.fault in named]
    return [(fault, replace(outcome, today=_fair(fault, outcome))) for fault, outcome in pairs]


def _fair(fault: Fault, outcome: Outcome) -> dict[str, bool] | None:
    """Today's verdicts that say something about the fault."""
    unfair = UNFAIR.get(fault.subject, ())
    return outcome.today and {key: passed for key, passed in outcome.today.items() if key not in unfair}


def figures(data: JsonObject) -> str:
    """The README's table: the gate beside today's checks, and false alarms."""
    pairs = _pairs(data)
    held = [outcome for _, outcome in pairs if outcome.today is not None]
    lines = [
        f"Of **{len(pairs)}** faults injected one at a time the gate finds **{sum(o.found(f) for f, o in pairs)}**, names the right step in "
        f"{sum(o.right_step(f) for f, o in pairs)} and the right place in {sum(o.right_place(f) for f, o in pairs)}.",
        f"Of the {len(held)} that reach a program's answers, today's checks find, where the sound program passes them itself:",
        "",
        "| check | found |",
        "|---|---|",
    ]
    lines += [f"| {name} | {_seen(held, key)} |" for key, name in today.NAMES.items()]
    found = sum(o.found(f) for f, o in pairs if o.today is not None)
    lines += [f"| this gate | {found} of {len(held)} |", ""]
    if "clean" in data:
        verdicts = data["clean"]["outcomes"]
        alarms = sum(o["status"] != 0 for o in verdicts)
        lines += [f"False alarms: {alarms} of {len(verdicts)} sound artifacts.", ""]
    return "\n".join(lines) + "\n"


def _seen(held: Iterable[Outcome], key: str) -> str:
    """How many faults one of today's checks finds, of those that it was fairly asked about."""
    passed = [outcome.today[key] for outcome in held if outcome.today and key in outcome.today]
    return f"{passed.count(False)} of {len(passed)}"


def page(data: JsonObject) -> str:
    """The whole page."""
    pairs = _pairs(data)
    run = data["faults"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items()))
    parts = [
        "# Can the gate fail?",
        "<!-- Written by python -m verifier.faults --write docs. Do not edit. -->",
        figures(data),
        f"Run on {run['date']} in {run['wall_s'] // 60} min {run['wall_s'] % 60} s, {run['workers']} faults at a time on {run['cores']} cores "
        f"({', '.join(map(str, run['cpu'].values()))}); {versions}.",
        _HOW,
        _by_kind(pairs),
        *(_section(kind, [pair for pair in pairs if pair[0].kind == kind]) for kind in KINDS),
        _exceptions(pairs),
        _witnesses(data),
        _clean(data),
        _rows(pairs),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


_HOW = """\
How to read it. Every fault is put into a sound artifact, or into its use, and the gate's command line is run on it; exit status,
step and place are compared with the right answer that stands beside the fault in `verifier/faults/`. The cheapest checks are made
first (constants and structure, then layer by layer, then everything), and the first stage that fails ends it: checks are independent and
blamed in a fixed order, so this is what the whole gate says. `also` counts further checks that failed in that stage.
Beside it, on the same run, what people use today. **(a)** the caption begins with the nine words that are due (upstream's test), **(b)** five
tokens came out (upstream's script), **(c)** SQNR >= 10 dB and cosine >= 0.95 of the logits against fp32 (ExecuTorch's Qualcomm samples),
**(d)** 95 % of the top-1 tokens are fp32's. A dash: not applicable, because nothing ran, because only the recorded trace was changed, or because
the model is a random one, which does not pass (a) and (d) even when it is sound."""


def _by_kind(pairs: list[tuple[Fault, Outcome]]) -> str:
    lines = ["| into | faults | found | right step | right place | (a) | (b) | (c) | (d) |", "|---" * 9 + "|"]
    groups = [(kind, [p for p in pairs if p[0].kind == kind]) for kind in KINDS]
    for name, group in [*groups, ("all", pairs)]:
        held = [o for _, o in group if o.today is not None]
        lines.append(
            f"| {name} | {len(group)} | {sum(o.found(f) for f, o in group)} | {sum(o.right_step(f) for f, o in group)} "
            f"| {sum(o.right_place(f) for f, o in group)} | "
            + " | ".join(_seen(held, key) for key in today.NAMES)
            + " |"
        )
    return "\n".join(lines)


def _mark(yes: bool) -> str:
    return "yes" if yes else "**no**"


def _section(kind: str, pairs: list[tuple[Fault, Outcome]]) -> str:
    lines = [
        f"## Faults in the {kind}",
        "",
        "| fault | rows | found by | step | place | also | s | (a) | (b) | (c) | (d) |",
        "|---" * 11 + "|",
    ]
    for fault, outcome in pairs:
        rows = ", ".join(map(str, fault.rows)) or "-"
        by = outcome.check or ("refused" if outcome.found(fault) else "**not found**")
        step = f"{outcome.step or '-'}{'' if outcome.right_step(fault) else ' **wrong**'}"
        held = [_mark(not outcome.today[key]) if outcome.today and key in outcome.today else "-" for key in today.NAMES]
        cells = [
            fault.text,
            rows,
            by,
            step,
            _mark(outcome.right_place(fault)),
            str(outcome.others),
            f"{outcome.wall_s:.0f}",
            *held,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _exceptions(pairs: list[tuple[Fault, Outcome]]) -> str:
    wrong = [(f, o) for f, o in pairs if not (o.found(f) and o.right_step(f) and o.right_place(f))]
    if not wrong:
        return "## Not found, or blamed elsewhere\n\nNone."
    lines = ["## Not found, or blamed elsewhere", ""]
    for fault, outcome in wrong:
        said = (
            f"{outcome.step} {outcome.check}: {outcome.message}"
            if outcome.check
            else outcome.message or outcome.problem
        )
        lines.append(
            f"- *{fault.text}* - {EXCEPTIONS.get(fault.name, 'no reason known yet')}. The gate said: {said[:200].rstrip()}"
        )
    return "\n".join(lines)


def only_witness(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """Faults by the check that alone fails for them, where every check was made."""
    alone: dict[str, list[str]] = {}
    for outcome in outcomes:
        if len(outcome.failed) == 1:
            alone.setdefault(outcome.failed[0], []).append(outcome.fault)
    return alone


def _witnesses(data: JsonObject) -> str:
    """What each check is for: faults that it blames, that it sees, and that no other check sees."""
    if "witnesses" not in data:
        return ""
    run = data["witnesses"]
    outcomes = [Outcome.read(saved) for saved in run["outcomes"]]
    alone, seen = only_witness(outcomes), Counter(check for outcome in outcomes for check in outcome.failed)
    blamed, text = Counter(outcome.check for outcome in outcomes), {fault.name: fault.text for fault in FAULTS}
    lines = [
        "## What each check is for",
        "",
        f"Every check was made for every fault ({run['date']}, {run['wall_s'] // 60} min). *First* counts the faults that a check is blamed for, *sees* those for "
        "which it fails.",
        "",
        "| check | first | sees | a fault that no other check sees, or why there is none |",
        "|---|---|---|---|",
    ]
    for check in CHECKS:
        own = alone.get(check.id, [])
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        said = f"{text.get(own[0], own[0])}{more}" if own else check.overlap
        lines.append(f"| `{check.id}` | {blamed[check.id]} | {seen[check.id]} | {said.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _clean(data: JsonObject) -> str:
    if "clean" not in data:
        return ""
    run = data["clean"]
    families = Counter(o["fault"].partition("-")[0] for o in run["outcomes"])
    alarms = [o for o in run["outcomes"] if o["status"] != 0]
    words = {
        "random": "random models of many seeds, shapes and recipes",
        "export": "golden images on exports that were calibrated on other images",
        "local": "golden images one by one, layer by layer",
        "native": "golden images one by one on the C++ runner",
        "unseen": "pictures that nobody has seen before",
        "question": "other questions, in other languages and lengths",
        "cores": "one core and two, both runners",
        "qemu": "emulated phones",
    }
    lines = [
        "## False alarms",
        "",
        f"{len(alarms)} of {len(run['outcomes'])} sound artifacts ({run['date']}, {run['wall_s'] // 60} min, {run['workers']} at a time):",
        "",
        *(f"- {count} {words.get(family, family)}" for family, count in families.items()),
    ]
    lines += (
        ["", *(f"- **{o['fault']}**: {o['check']} {o['message'] or o['problem'][-300:]}" for o in alarms)]
        if alarms
        else []
    )
    return "\n".join(lines)


def _rows(pairs: list[tuple[Fault, Outcome]]) -> str:
    lines = ["## The rows", "", "Faults that happened in practice, and how many of those above stand for them.", ""]
    lines += ["| row | what happened | evidence | faults |", "|---|---|---|---|"]
    counts = Counter(row for fault, _ in pairs for row in fault.rows)
    lines += [f"| {row} | {text} | {evidence} | {counts[row]} |" for row, (text, evidence) in ROWS.items()]
    return "\n".join(lines)
