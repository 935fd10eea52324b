"""Bundles that are one after the other what they would be together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import CALLER
from verifier.audit.records import Cache
from verifier.measures.kvcache import POISONED, _ask_poison, _poison
from verifier.measures.paired_calls import PROMPT_TOKENS, one_result
from verifier.measures.probes import POISONS, Asked
from verifier.runner.protocol import Bundle, Outcome, Result

VALUES = dict(zip(POISONS, (7.0, 9.0), strict=True))
CACHES = (Cache(value=0, kind="k", layer=0, axis=1, sizes=(1, 64, 1, 2), size_bytes=512),)


def _result(outcome: Outcome, *outputs: float, peak: int = 0) -> Result:
    return Result(
        outcome,
        outcome,
        outputs={call: np.array([value], np.float32) for call, value in enumerate(outputs)},
        call_s=(1.0,) * len(outputs),
        peak_rss_bytes=peak,
    )


def _asked(*, apart: bool, failing: float | None = None) -> tuple[Asked, list[int]]:
    """What a program answers that gives back the last row of its cache, and how many calls each process got."""
    counts: list[int] = []

    def run(bundle: Bundle) -> Result:
        counts.append(len(bundle.calls))
        rows = [float(call.inputs[2][0, -1, 0, 0]) for call in bundle.calls]
        return _result("crashed") if failing in rows else _result("ok", *rows)

    tokens = np.zeros((PROMPT_TOKENS + max(POISONED), 2), np.float32)
    prompt = [np.ones((1, PROMPT_TOKENS, 1, 2), np.float32)]
    asked = partial(_poison, CALLER, tokens, CACHES, prompt)
    return _ask_poison(run, Path("program.pte"), asked, VALUES, apart=apart), counts


def test_caches_apart_ask_the_same() -> None:
    """The same answers under the same numbers, compared in the same pairs, with one set of caches in a process at a time."""
    (together, one), (apart, several) = _asked(apart=False), _asked(apart=True)
    assert (one, several) == ([6], [2, 2, 2])
    assert {call: float(x[0]) for call, x in apart.result.outputs.items()} == {0: 0, 1: 0, 2: 7, 3: 7, 4: 9, 5: 9}
    assert apart.result.outputs == together.result.outputs
    assert apart.pairs == together.pairs
    assert [(pair.case, pair.actual, pair.expected, pair.position) for pair in apart.pairs] == [
        ("NaN", 2, 0, 48),
        ("NaN", 3, 1, 52),
        ("huge", 4, 0, 48),
        ("huge", 5, 1, 52),
    ]


def test_process_that_ends_badly_is_the_last() -> None:
    """Its outcome counts, and what it was to answer is missing."""
    asked, counts = _asked(apart=True, failing=7.0)
    assert counts == [2, 2]
    assert asked.result.outcome == "crashed"
    assert set(asked.result.outputs) == {0, 1}
    assert {pair.actual for pair in asked.pairs}.isdisjoint(asked.result.outputs)


@pytest.mark.parametrize("outcome", ["ok", "crashed"])
def test_results_are_numbered_on(outcome: Outcome) -> None:
    """Outputs and times in order, the largest peak, the last outcome."""
    made = one_result([_result("ok", 1.0, 2.0, peak=5), _result(outcome, 3.0, peak=4)])
    assert {call: float(x[0]) for call, x in made.outputs.items()} == {0: 1.0, 1: 2.0, 2: 3.0}
    assert (made.outcome, made.finished_calls, made.peak_rss_bytes) == (outcome, 3, 5)
