"""Bands from spreads."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.commands.calibrate import Measured, bands, main, spread_interval
from verifier.golden.bands import Band


def test_interval_covers_the_true_spread() -> None:
    """95 % intervals of 60 normal deviations hold the true rms of 1 nearly always."""
    rng = np.random.default_rng(1)
    intervals = [spread_interval(rng.standard_normal(60).tolist()) for _ in range(40)]
    assert sum(low <= 1.0 <= high for low, high in intervals) >= 34
    assert all(low < high for low, high in intervals)


def test_margin_is_three_upper_spreads() -> None:
    """Many deviations: the upper end of the interval counts. Larger is better for dB, so the limit lies below."""
    cases = {f"image {i}": 30.0 for i in range(20)}
    rng = np.random.default_rng(2)
    variants = [
        Measured({"logits.sqnr_db": {c: v + rng.normal(scale=0.8) for c, v in cases.items()}}) for _ in range(2)
    ]
    band = bands(Measured({"logits.sqnr_db": cases}), variants)["logits.sqnr_db"]
    assert band["margin"] == pytest.approx(max(3 * band["spread_ci95"][1], 0.05 * 30))
    assert (band["direction"], band["deviations"]) == (1, 40)


def test_few_deviations_keep_four_spreads() -> None:
    """Two files and one number each: nothing to bootstrap."""
    made = bands(
        Measured({"logits.kl_p90": {"program": 0.1}}),
        [Measured({"logits.kl_p90": {"program": 0.13}}), Measured({"logits.kl_p90": {"program": 0.1}})],
    )
    assert made["logits.kl_p90"]["margin"] == pytest.approx(4 * np.sqrt(0.03**2 / 2))


def test_case_that_moves_more_gets_more() -> None:
    """One image of twenty loses 6 dB in one variant: its own margin is 1.5 times that, all others keep theirs; what is better than
    before widens nothing."""
    cases = {f"image {i}": 25.0 for i in range(20)}
    rng = np.random.default_rng(3)
    variants = [
        Measured({"logits.sqnr_db": {c: v + rng.normal(scale=0.3) for c, v in cases.items()}}) for _ in range(2)
    ]
    variants[0].values["logits.sqnr_db"]["image 7"] = 19.0
    variants[1].values["logits.sqnr_db"]["image 8"] = 31.0
    made = bands(Measured({"logits.sqnr_db": cases}), variants)["logits.sqnr_db"]
    assert made["wider"] == {"image 7": pytest.approx(9.0)}
    band = Band("logits.sqnr_db", made["direction"], made["measured"], made["margin"], made["wider"])
    assert band.allowed("image 7") == pytest.approx(16.0)
    assert band.allowed("image 6") == pytest.approx(25.0 - made["margin"])
    larger_is_worse = bands(
        Measured({"logits.kl_p90": {"a": 0.1}}), [Measured({"logits.kl_p90": {"a": v}}) for v in (0.1, 0.5)]
    )
    assert larger_is_worse["logits.kl_p90"]["wider"] == {}  # four spreads of two numbers are more already


def test_repeats_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and why."""
    assert main(["a.pte", "--repeats", "0", "--variant", "b.pte", "--variant", "c.pte"]) == 2
    assert "1 to 100" in capsys.readouterr().err
