"""Rows about what was measured against the checkpoint: weights, layers, image tokens, logits, captions."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from verifier.comparison.rows import LISTED, Change, Row, number_row
from verifier.core.limits import limit, stated
from verifier.families.conventions import DECODER, ENCODER
from verifier.report.as_json import Report
from verifier.report.words import number

UNCALIBRATED = {"dB": limit("compare.uncalibrated").value} | {
    metric: limit(f"compare.uncalibrated.{metric}").value for metric in ("logits.kl_p90", "logits.top1_agreement")
}
BUDGET = 3
"""The accepted loss of what was never calibrated, in units of what says nothing."""
WEIGHTS = limit("compare.weights")
"""A mean loss that does not count."""


def weights(old: Report, new: Report) -> Row:
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
    if wrong or (not mended and not WEIGHTS.admits(-mean)):
        change = "worse"
    elif mended or not WEIGHTS.admits(mean):
        change = "better"
    after_said = f"{len(changed)} stored differently" + (f", {len(wrong)} wrong" if wrong else "")
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


def numerics(old: Report, new: Report) -> Iterable[Row]:
    """The same measures against the same reference: layer by layer, then image tokens and logits."""
    for method in (ENCODER, DECODER):
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
    shown = worst if not _within(noise, -min(moved)) else max(shared, key=lambda case: pair[1][case] - pair[0][case])
    yield number_row(
        f"layers of {method}",
        f"stream against fp32 after {shown.removeprefix(method + '.')}",
        pair[0][shown],
        pair[1][shown],
        more_is_better=True,
        unit="dB",
        noise=noise,
        budget=budget,
        detail=_worst_changes(pair, shared),
    )


def _within(noise: float, loss: float) -> bool:
    return stated("compare.profile", noise, "dB", "most").admits(loss)


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
        noise = UNCALIBRATED[unit] if unit == "dB" else UNCALIBRATED[metric]
        return noise, BUDGET * noise
    return limit("compare.spreads").value * float(known["spread"]), float(known["margin"])


def _worst_changes(pair: list[dict[str, float]], shared: list[str]) -> tuple[str, ...]:
    changes = sorted((-abs(pair[1][case] - pair[0][case]), case) for case in shared if pair[0][case] != pair[1][case])
    return tuple(f"{case} {number(pair[0][case])} -> {number(pair[1][case])}" for _, case in changes[:LISTED])


def captions(old: Report, new: Report) -> Row:
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
        said_of[1] + (f", {len(other)} with other words" if other else ""),
        change,
        detail=detail,
    )


def _verdicts(report: Report, id: str) -> dict[str, str]:
    return {check["case"]: check["verdict"] for check in report["checks"] if check["id"] == id}
