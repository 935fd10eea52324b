"""The one table of limits: NaN is never inside, and nothing but `Limit.admits` compares a measure with a bound."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import verifier
from verifier.core.limits import LIMITS, Limit, limit
from verifier.core.scales import SCALES, scale_of

ROOT = Path(verifier.__file__).parent
JUDGING = (
    "checks",
    "measures",
    "ladder",
    "comparison",
    "audit",
    "commands/calibrate.py",
    "record/verdict.py",
    "commands/budgets.py",
    "golden",
    "record/figures.py",
    "sessions",
)
MEASURE = re.compile(
    r"(^|_)(db|limits?|allowed|bound|noise|budget|tolerance|clipped|steps|share|margin|excess|worst|off|gain|band|loosest|value)$"
)
NOT_A_JUDGEMENT = {
    "value < 10000.0": "how a number is printed",
    "made.row_sqnr_db.min() < worst": "keeps the worst of comparable rows",
    "made.sqnr_db < worst": "keeps the worst of comparable calls",
    "value < worst": "keeps the worst of comparable pairs",
    "share > within.value": "names the first row of one that was judged",
    "spread > limit('channels.telling').value * np.median(spread)": "element by element; NaN is left out, and a fit of NaN is refused before",
    "steps <= allowed": "element by element, negated: NaN is off",
    "steps <= limit('session.decoder_steps').value": "element by element, of whole numbers; the share is judged",
    "steps <= float(away.max())": "negated: NaN comes through",
    "steps < 0.5": "the second order of two passes need not be tried",
    "off <= allowed.value": "negated: names the first place of what was judged",
    "value.count > 1": "a plural",
    "tokens_of(dialogue_segments(tokenizer, form, (Turn(text),)), patches) <= limit": "a length in tokens",
    "needed > limit": "a length in tokens",
    "search.moved < steps": "a number of steps",
    "limit > cache": "two lengths in tokens, both whole numbers of the program",
    "sum(kept) + size < limit": "a length in tokens",
    "start < limit": "a position",
    "len(value.sizes) > 1": "a rank",
    "norm > FLAT.value * max(1.0, float(np.abs(flat).max()))": "NaN is like nothing",
    "WORST * w > margin": "which cases get a margin of their own",
    "value > 0": "which values have a share",
    "likeness >= ALIKE.value": "NaN is like nothing",
    "real < integers * steps": "an integer at the end of its range; NaN is not cut off",
    "real > integers * steps": "an integer at the end of its range; NaN is not cut off",
    "error <= NEAREST.value": "element by element, negated: NaN is not the nearest",
}
"""Comparisons in judging modules that look like one of a measure with a bound, and what they are instead."""


@pytest.mark.parametrize("row", LIMITS.values(), ids=list(LIMITS))
def test_no_limit_admits_what_is_not_finite(row: Limit) -> None:
    """Whatever the side; the bound itself is inside."""
    assert row.admits(row.value)
    assert not any(row.admits(value) for value in (math.nan, math.inf, -math.inf))
    assert not row.of(math.nan).admits(row.value)


def test_each_side_of_a_bound() -> None:
    """At least, at most, equal."""
    at_least, at_most = limit("mapping.activations"), limit("embedding.tokens")
    assert (at_least.admits(99.9), at_least.admits(100.1)) == (False, True)
    assert (at_most.admits(0.52), at_most.admits(0.5)) == (False, True)
    equal = Limit("x", 3.0, "count", "equal", "policy", "made up")
    assert (equal.admits(3.0), equal.admits(2.0)) == (True, False)


def test_every_limit_says_why_and_a_measured_one_what_was_seen() -> None:
    """Provenance stands beside each number."""
    assert [row.id for row in LIMITS.values() if len(row.why.split()) < 2] == []
    unseen = [
        row.id for row in LIMITS.values() if row.kind == "measured" and not (row.seen or row.why.startswith("as "))
    ]
    assert unseen == []


def test_measures_of_calibrated_bands_have_a_direction() -> None:
    """Decibels and agreement are lower bounds, all others upper ones; a name with two meanings is told apart by its check."""
    assert {name for name, scale in SCALES.items() if scale.at == "least"} == {
        *(name for name, scale in SCALES.items() if scale.unit == "dB"),
        "logits.top1_agreement",
        "logits.top1_decided",
        "structure.memory planned_bytes",
        "apart",
    }
    assert scale_of("structure.memory", "planned_bytes") != scale_of("budget.memory", "planned_bytes")
    assert scale_of("splice.capacity", "tokens") is None


def _comparisons() -> Iterator[tuple[str, int, str]]:
    for name in JUDGING:
        path = ROOT / name
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(module.read_text())):
                ordered = isinstance(node, ast.Compare) and any(
                    isinstance(op, (ast.Lt, ast.Gt, ast.LtE, ast.GtE)) for op in node.ops
                )
                names = [getattr(x, "id", getattr(x, "attr", "")) for x in ast.walk(node)]
                if ordered and any(MEASURE.search(found.lower()) for found in names):
                    yield str(module.relative_to(ROOT)), node.lineno, ast.unparse(node)


def test_nothing_else_compares_a_measure_with_a_bound() -> None:
    """`<` of a NaN is false, whichever way it is written: ask `Limit.admits`, or say in NOT_A_JUDGEMENT what the comparison is."""
    found = list(_comparisons())
    assert [f"{module}:{line}: {text}" for module, line, text in found if text not in NOT_A_JUDGEMENT] == []
    assert len(found) > 5
