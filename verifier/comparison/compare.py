"""Baseline against candidate, from their reports alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from verifier.comparison.numerics import captions, numerics, weights
from verifier.comparison.rows import LISTED, Change, Row, number_row
from verifier.core.errors import UsageError
from verifier.core.limits import limit
from verifier.core.records import JsonObject
from verifier.report.as_json import Report
from verifier.report.words import number, place, said

FIGURES = ("file_bytes", "planned_bytes", "peak_rss_bytes", "prefill_loops", "decode_loops")
BUDGETS = {name: limit(f"compare.{name}").value for name in FIGURES}
"""What may be lost of size, memory and speed, as a share of the old value, unless `--budget` says otherwise."""
NOISE = {name: limit(f"compare.{name}.noise").value for name in FIGURES}
"""Shares that say nothing."""


@dataclass(frozen=True)
class Comparison:
    """All rows. `old` and `new` are file names."""

    old: str
    new: str
    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Change:
        """Worse if any row is; else better if any is; changes alone are `changed`."""
        found = {row.change for row in self.rows}
        return next((change for change in ("worse", "better", "changed") if change in found), "same")

    @property
    def refused(self) -> tuple[Row, ...]:
        """Rows that are worse beyond their budgets."""
        return tuple(row for row in self.rows if row.beyond_budget)

    @property
    def first_line(self) -> str:
        """The verdict, and what it rests on."""
        of = {
            change: [row for row in self.rows if row.change == change]
            for change in ("worse", "better", "changed", "unknown", "same")
        }
        parts = [_few(of.get(self.verdict, []))] if self.verdict != "same" else []
        if self.verdict == "worse" and of["better"]:
            parts.append(f"better: {_few(of['better'])}")
        told = {self.verdict, *(["better"] if self.verdict == "worse" else [])} - {"same"}
        counts = [f"{len(rows)} {change}" for change, rows in of.items() if rows and change not in told]
        head = f"{self.verdict.upper()}: {self.new} against {self.old}"
        return (f"{head}: {'; '.join(parts)}" if parts else head) + (f" ({', '.join(counts)})" if counts else "")


NAMED, SHORT = 3, 150


def _few(rows: list[Row]) -> str:
    """The first rows in a few words each, and how many more there are."""
    more = len(rows) - NAMED
    return "; ".join([_short(row) for row in rows[:NAMED]] + ([f"{more} more"] if more > 0 else []))


def _short(row: Row) -> str:
    what = f"{row.subject}, {row.what}" if row.what else row.subject
    if isinstance(row.old, (int, float)) and isinstance(row.new, (int, float)):
        if row.relative and row.old:
            return f"{what} {row.new / row.old - 1:+.1%}"
        return f"{what} {number(row.old)} -> {number(row.new)}{' ' + row.unit if row.unit else ''}"
    lead = f": {shorten(row.detail[0], SHORT, placeholder=' …')}" if row.detail else ""
    return f"{what} {row.old} -> {row.new}{lead}"


def compare_reports(old: Report, new: Report, *, budgets: dict[str, float] | None = None) -> Comparison:
    """Hold two reports of one checkpoint against each other. Raises `UsageError` if they are not comparable."""
    for name, report in (("the baseline", old), ("the candidate", new)):
        if "facts" not in report:
            raise UsageError(
                f"{name} has no facts to compare by",
                got='a report without "facts"',
                expected='"facts", which reports have since version 0.2',
                fix=f"verify the file again: python -m verifier.test_pte {report['artifact']['path']} --json report.json",
            )
    if old["checkpoint"]["sha256"] != new["checkpoint"]["sha256"]:
        raise UsageError(
            "the files are verified against two checkpoints",
            got=f"{old['checkpoint']['id']} and {new['checkpoint']['id']}",
            expected="one",
            fix="give --model the same folder for both",
        )
    allowed = BUDGETS | (budgets or {})
    rows = [
        _gate(old, new),
        _calls(old, new),
        _recipe(old, new),
        _structure(old, new),
        _delegation(old, new),
        *_sizes(old, new, allowed),
        weights(old, new),
        *numerics(old, new),
        captions(old, new),
        *_speed(old, new, allowed),
    ]
    names = [Path(report["artifact"]["path"]).name for report in (old, new)]
    return Comparison(names[0], names[1], tuple(row for row in rows if row is not None))


def _gate(old: Report, new: Report) -> Row:
    """The verdicts. What was never calibrated cannot be judged, which is neither better nor worse."""
    rank = {"pass": 1, "fail": 0}
    pair = [rank.get(report["verdict"]) for report in (old, new)]
    change: Change = "unknown" if None in pair else "same" if pair[0] == pair[1] else "better" if pair[1] else "worse"
    if new["verdict"] == "fail" and old["verdict"] != "fail":
        change = "worse"
    detail: tuple[str, ...] = ()
    if new["blame"] is not None:
        blame = new["blame"]
        detail = (f"step {blame['step']}, {place(blame) or blame['case']}: {blame['check']}: {said(new)}",)
    return Row("verdict", "", old["verdict"], new["verdict"], change, detail=detail)


def _calls(old: Report, new: Report) -> Row | None:
    """How the programs are called: an app that calls one does not call one of another exporter. None for reports that do not say."""
    pair = [report["facts"].get("convention") for report in (old, new)]
    if None in pair:
        return None
    return Row("calls", "", pair[0], pair[1], "same" if pair[0] == pair[1] else "changed")


def _recipe(old: Report, new: Report) -> Row:
    pair = [dict(report["artifact"]["recipe"]) for report in (old, new)]
    keys = [
        key for key in dict.fromkeys([*pair[0], *pair[1]]) if key != "name" and pair[0].get(key) != pair[1].get(key)
    ]
    changed = tuple(f"{key} {pair[0].get(key)} -> {pair[1].get(key)}" for key in keys)
    names = [f"{recipe['name']}-{recipe.get('max_seq_len', '')}" for recipe in pair]
    return Row("recipe", "", names[0], names[1], "changed" if changed else "same", detail=changed)


def _census(report: Report) -> dict[str, int]:
    return {
        f"{method} {name}": count
        for method, found in report["facts"]["census"].items()
        for name, count in found.items()
    }


def _structure(old: Report, new: Report) -> Row:
    """Methods, instructions and nodes. Metadata that an exporter does not write is a change: whether runners need it, the verdict says."""
    before, after = _census(old), _census(new)
    changed = sorted(
        (name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0)),
        key=lambda name: -abs(before.get(name, 0) - after.get(name, 0)),
    )
    detail = tuple(f"{name} {before.get(name, 0)} -> {after.get(name, 0)}" for name in changed[:LISTED])
    counts = [f"{sum(census.values())} instructions and nodes" for census in (before, after)]
    lost = sorted(set(old["artifact"]["methods"]) - set(new["artifact"]["methods"]))
    missing = tuple(f"{name} is missing" for name in lost)
    if set(lost) & old["facts"]["census"].keys():
        return Row("structure", "methods", counts[0], counts[1], "worse", detail=missing)
    told = (f"metadata: {', '.join(missing)}",) if missing else ()
    return Row("structure", "", counts[0], counts[1], "changed" if changed or lost else "same", detail=(*told, *detail))


def _delegation(old: Report, new: Report) -> Row:
    """Kernels outside of XNNPACK: each is a hop, and work that is not delegated is slow."""

    def outside(report: Report) -> dict[str, int]:
        return {name: count for name, count in _census(report).items() if "::" in name}

    before, after = outside(old), outside(new)
    more = sorted(
        (name for name in after if after[name] > before.get(name, 0)),
        key=lambda name: before.get(name, 0) - after[name],
    )
    detail = tuple(f"{name} {before.get(name, 0)} -> {after[name]}" for name in more[:LISTED])
    return number_row(
        "delegation",
        "kernels outside XNNPACK",
        sum(before.values()),
        sum(after.values()),
        more_is_better=False,
        detail=detail,
    )


_SIZES = (("file_bytes", "size", "bytes of the file"), ("planned_bytes", "memory", "planned for tensors that change"))
_SPEEDS = (
    ("peak_rss_bytes", "memory", "peak while running", "bytes"),
    ("prefill_loops", "speed", "an image and its prefill", "loops"),
    ("decode_loops", "speed", "one token", "loops"),
)


def _sizes(old: Report, new: Report, budgets: dict[str, float]) -> Iterable[Row]:
    for name, subject, what in _SIZES:
        pair = [float(report["facts"][name]) for report in (old, new)]
        detail: tuple[str, ...] = ()
        if name == "planned_bytes":
            parts = [report["facts"]["planned_bytes_of"] for report in (old, new)]
            detail = tuple(
                f"{m} {number(b)} -> {number(parts[1][m])}" for m, b in parts[0].items() if parts[1].get(m) != b
            )
        yield number_row(
            subject,
            what,
            pair[0],
            pair[1],
            more_is_better=False,
            unit="bytes",
            noise=NOISE[name],
            budget=budgets[name],
            relative=True,
            detail=detail,
        )


def _speed(old: Report, new: Report, budgets: dict[str, float]) -> Iterable[Row]:
    """What was measured on both sides."""
    for name, subject, what, unit in _SPEEDS:
        pair = [report["facts"]["speed"].get(name) for report in (old, new)]
        if None not in pair:
            yield number_row(
                subject,
                what,
                pair[0],
                pair[1],
                more_is_better=False,
                unit=unit,
                noise=NOISE[name],
                budget=budgets[name],
                relative=True,
            )


def as_data(comparison: Comparison) -> JsonObject:
    """The comparison as plain data."""
    return {
        "schema": "verifier.comparison/1",
        "verdict": comparison.verdict,
        "first_line": comparison.first_line,
        "refused": [f"{row.subject} {row.what}".strip() for row in comparison.refused],
        "old": comparison.old,
        "new": comparison.new,
        "rows": [
            {
                "subject": row.subject,
                "what": row.what,
                "old": row.old,
                "new": row.new,
                "change": row.change,
                "unit": row.unit,
                "noise": row.noise,
                "budget": row.budget,
                "relative": row.relative,
                "beyond_budget": row.beyond_budget,
                "detail": list(row.detail),
            }
            for row in comparison.rows
        ],
    }
