"""Baseline against candidate, from their reports alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from verifier.comparison.rows import Change, Row, number_row
from verifier.errors import UsageError
from verifier.report.as_json import Report
from verifier.report.words import number, place, said

BUDGETS = {
    "file_bytes": 0.02,
    "planned_bytes": 0.02,
    "peak_rss_bytes": 0.05,
    "prefill_loops": 0.10,
    "decode_loops": 0.10,
}
"""What may be lost of size, memory and speed, as a share of the old value, unless `--budget` says otherwise."""
NOISE = {"file_bytes": 0.001, "planned_bytes": 0.0, "peak_rss_bytes": 0.02, "prefill_loops": 0.05, "decode_loops": 0.05}
"""Shares that say nothing. A file's size depends on alignment; speed of one file in five runs on two AVX2 cores lay within 5 %
(docs/budgets.md has the measurement)."""
UNCALIBRATED_DB = 1.0
"""Noise of an SQNR whose recipe has no bands: the largest rms spread of llava_tiny's bands, of logits (tolerances.json)."""
WEIGHTS_DB = 0.05
"""A change of SQNR against the checkpoint that counts, in the mean of all quantized tensors; bytes do not vary by themselves, but a
calibration on another machine moves a bias."""
LISTED = 6


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
                got="a report of an older version",
                expected='"facts"',
                fix="verify the file again",
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
        _recipe(old, new),
        _structure(old, new),
        _delegation(old, new),
        *_sizes(old, new, allowed),
        _weights(old, new),
        *_numerics(old, new),
        _captions(old, new),
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


def _recipe(old: Report, new: Report) -> Row:
    pair = [dict(report["artifact"]["recipe"]) for report in (old, new)]
    changed = tuple(
        f"{key} {pair[0].get(key)} -> {value}"
        for key, value in pair[1].items()
        if pair[0].get(key) != value and key != "name"
    )
    names = [f"{recipe['name']}-{recipe.get('max_seq_len', '')}" for recipe in pair]
    return Row("recipe", "", names[0], names[1], "changed" if changed else "same", detail=changed)


def _census(report: Report) -> dict[str, int]:
    return {
        f"{method} {name}": count
        for method, found in report["facts"]["census"].items()
        for name, count in found.items()
    }


def _structure(old: Report, new: Report) -> Row:
    """Methods, instructions and nodes."""
    before, after = _census(old), _census(new)
    changed = sorted(
        (name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0)),
        key=lambda name: -abs(before.get(name, 0) - after.get(name, 0)),
    )
    detail = tuple(f"{name} {before.get(name, 0)} -> {after.get(name, 0)}" for name in changed[:LISTED])
    counts = [f"{sum(census.values())} instructions and nodes" for census in (before, after)]
    lost = set(old["artifact"]["methods"]) - set(new["artifact"]["methods"])
    if lost:
        return Row(
            "structure",
            "methods",
            counts[0],
            counts[1],
            "worse",
            detail=tuple(f"{name} is missing" for name in sorted(lost)),
        )
    return Row("structure", "", counts[0], counts[1], "changed" if changed else "same", detail=detail)


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


def _weights(old: Report, new: Report) -> Row:
    """Which tensors are stored otherwise, and how much closer to the checkpoint, or further from it, they are."""
    before, after = old["facts"]["constants"], new["facts"]["constants"]
    if not before or not after:
        return Row("weights", "", None, None, "unknown", detail=("the constants were not audited on both sides",))
    changed = [name for name in before if name in after and before[name]["digest"] != after[name]["digest"]]
    odd = [f"{name} only in one of them" for name in sorted(set(before) ^ set(after))]
    audits = [{c["case"]: c for c in report["checks"] if c["id"] == "weights.tensors"} for report in (old, new)]
    wrong = [
        n
        for n, c in audits[1].items()
        if c["verdict"] == "fail" and audits[0].get(n, c | {"verdict": ""})["verdict"] == "pass"
    ]
    mended = [
        n for n, c in audits[1].items() if c["verdict"] == "pass" and audits[0].get(n, {}).get("verdict") == "fail"
    ]
    gains = {n: g for n in changed if (g := _gain(audits, n)) is not None}
    detail = [f"{name}: {audits[1][name]['message']}" for name in wrong[:LISTED]]
    detail += [f"{n} {gains[n]:+.2f} dB against the checkpoint" for n in sorted(gains, key=lambda n: gains[n])[:LISTED]]
    judged = sum(isinstance(check["measured"].get("sqnr_db"), (int, float)) for check in audits[1].values())
    mean = sum(gains.values()) / judged if judged else 0.0
    change: Change = "same" if not changed and not odd else "changed"
    if wrong or (not mended and mean < -WEIGHTS_DB):
        change = "worse"
    elif mended or mean > WEIGHTS_DB:
        change = "better"
    after_said = f"{len(changed)} stored otherwise" + (f", {len(wrong)} wrong" if wrong else "")
    after_said += f", {mean:+.2f} dB in the mean of all" if gains else ""
    return Row("weights", "", f"{len(before)} tensors", after_said, change, detail=tuple(odd + detail)[: 2 * LISTED])


def _gain(audits: list[dict[str, Report]], name: str) -> float | None:
    pair = [audit.get(name, {}).get("measured", {}).get("sqnr_db") for audit in audits]
    return float(pair[1] - pair[0]) if all(isinstance(x, (int, float)) for x in pair) else None


_METRICS: tuple[tuple[str, str, str, str, str], ...] = (
    ("vision.embedding", "vision.sqnr_db", "vision", "image tokens against fp32, the middle image", "dB"),
    ("logits.teacher_forced", "logits.sqnr_db", "logits", "against fp32, the middle answer", "dB"),
    ("logits.distribution", "logits.kl_p90", "logits", "KL from fp32, 90 % of positions", "nats"),
    ("logits.distribution", "logits.top1_agreement", "logits", "top-1 agreement with fp32", ""),
)


def _numerics(old: Report, new: Report) -> Iterable[Row]:
    """The same measures against the same reference: layer by layer, then image tokens and logits."""
    for method in ("vision_encoder", "text_decoder"):
        yield from _layers(old, new, method)
    for id, metric, subject, what, unit in _METRICS:
        pair = [_measures(report, id, metric) for report in (old, new)]
        shared = [case for case in pair[0] if case in pair[1]]
        values = [median(found[case] for case in shared) if shared else None for found in pair]
        noise, budget = _noise(old, metric, unit)
        yield number_row(
            subject,
            what,
            values[0],
            values[1],
            more_is_better=not metric.startswith("logits.kl"),
            unit=unit,
            noise=noise,
            budget=budget,
            detail=_worst_changes(pair, shared),
        )


def _layers(old: Report, new: Report, method: str) -> Iterable[Row]:
    metric = "layers.profile_db"
    pair = [{c: v for c, v in report["facts"]["profile_db"].items() if c.startswith(method)} for report in (old, new)]
    shared = [case for case in pair[0] if case in pair[1]]
    if not shared:
        return
    noise, budget = _noise(old, metric, "dB")
    worst = min(shared, key=lambda case: pair[1][case] - pair[0][case])
    moved = [pair[1][case] - pair[0][case] for case in shared]
    # one layer that is worse counts; that most are better does too
    shown = worst if min(moved) < -noise else max(shared, key=lambda case: pair[1][case] - pair[0][case])
    yield number_row(
        f"layers of {method}",
        f"stream against fp32 behind {shown.removeprefix(method + '.')}",
        pair[0][shown],
        pair[1][shown],
        more_is_better=True,
        unit="dB",
        noise=noise,
        budget=budget,
        detail=_worst_changes(pair, shared),
    )


def _measures(report: Report, id: str, metric: str) -> dict[str, float]:
    return {
        check["case"]: float(value)
        for check in report["checks"]
        if check["id"] == id and isinstance(value := check["measured"].get(metric), (int, float))
    }


def _noise(old: Report, metric: str, unit: str) -> tuple[float, float]:
    """Twice the spread of equally clean files is noise, and the calibrated margin the budget."""
    known = old["facts"]["noise"].get(metric)
    if known is None:
        return (UNCALIBRATED_DB, 3 * UNCALIBRATED_DB) if unit == "dB" else (0.0, 0.0)
    return 2 * float(known["spread"]), float(known["margin"])


def _worst_changes(pair: list[dict[str, float]], shared: list[str]) -> tuple[str, ...]:
    by: Callable[[str], float] = lambda case: -abs(pair[1][case] - pair[0][case])  # noqa: E731
    return tuple(
        f"{case} {number(pair[0][case])} -> {number(pair[1][case])}"
        for case in sorted(shared, key=by)[:LISTED]
        if pair[0][case] != pair[1][case]
    )


def _captions(old: Report, new: Report) -> Row:
    """Golden answers: wrong ones count, other words where fp32 is undecided itself are only named."""
    answers = [{i["name"]: i["answer"] for i in report.get("figures", {}).get("images", [])} for report in (old, new)]
    judged = [_verdicts(report, "greedy.golden") for report in (old, new)]
    shared = [name for name in judged[0] if name in judged[1]]
    if not shared:
        return Row("captions", "", None, None, "unknown", detail=("no answers on both sides",))
    right = [sum(found[name] != "fail" for name in shared) for found in judged]
    other = [
        n for n in shared if n in answers[0] and n in answers[1] and answers[0][n]["actual"] != answers[1][n]["actual"]
    ]
    detail = tuple(f"{n}: {answers[0][n]['actual']!r} -> {answers[1][n]['actual']!r}" for n in other[:LISTED])
    change: Change = (
        "better" if right[1] > right[0] else "worse" if right[1] < right[0] else "changed" if other else "same"
    )
    said_of = [f"{count} of {len(shared)} right" for count in right]
    return Row(
        "captions",
        "",
        said_of[0],
        said_of[1] + (f", {len(other)} in other words" if other else ""),
        change,
        detail=detail,
    )


def _verdicts(report: Report, id: str) -> dict[str, str]:
    return {check["case"]: check["verdict"] for check in report["checks"] if check["id"] == id}


def as_data(comparison: Comparison) -> dict[str, Any]:
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
