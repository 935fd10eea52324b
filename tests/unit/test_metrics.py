"""Metrics: known values, and refusal before any number."""

from __future__ import annotations

import numpy as np
import pytest

from verifier import metrics
from verifier.checks import channels


def test_sqnr_of_a_known_error() -> None:
    """A tenth of the amplitude is 20 dB."""
    x = np.ones((4, 5), np.float32)
    assert metrics.sqnr_db(actual=x * 1.1, expected=x) == pytest.approx(20, abs=1e-4)
    assert metrics.sqnr_db(actual=x, expected=x) == 400


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        (np.zeros((2, 3), np.float32), "shape"),
        (np.zeros((2, 2), np.int64), "dtype"),
        (np.array([[0, 1], [np.nan, 2]], np.float32), r"first at \[1, 0\]"),
        (np.array([[0, 1], [2, -np.inf]], np.float32), r"first at \[1, 1\]"),
    ],
)
def test_comparable_refuses_before_any_metric(actual: np.ndarray, said: str) -> None:
    """Shape, dtype, then the first non-finite position."""
    mismatch = metrics.comparable(actual=actual, expected=np.zeros((2, 2), np.float32))
    assert mismatch is not None
    assert pytest.importorskip("re").search(said, mismatch.reason)


def test_comparable_refuses_emptiness() -> None:
    """Nothing compared is not agreement."""
    empty = np.zeros((0, 4), np.float32)
    assert "nothing to compare" in str(metrics.comparable(actual=empty, expected=empty))


def test_kl_is_zero_for_equal_and_known_for_shifted() -> None:
    """KL of (1/2, 1/2) against (1/4, 3/4) is ln(2) - ln(3) / 2."""
    expected = np.log(np.array([[0.5, 0.5]]))
    assert metrics.kl_divergence(actual=expected + 3, expected=expected)[0] == pytest.approx(0, abs=1e-12)
    actual = np.log(np.array([[0.25, 0.75]]))
    assert metrics.kl_divergence(actual=actual, expected=expected)[0] == pytest.approx(np.log(2) - np.log(3) / 2)


def test_fit_channels_finds_one_sign_below_the_noise() -> None:
    """A flipped channel of 256 under 10 dB noise: the SQNR hides it, the gain does not."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(500, 256))
    actual = expected + rng.normal(size=expected.shape) * 10 ** (-10 / 20)
    clean = metrics.sqnr_db(actual=actual, expected=expected)
    actual[:, 17] -= 2 * expected[:, 17]
    assert clean - metrics.sqnr_db(actual=actual, expected=expected) < 0.8
    fit = metrics.fit_channels(actual=actual, expected=expected)
    assert np.abs(fit.gain - 1).argmax() == 17
    assert fit.gain[17] == pytest.approx(-1, abs=0.1)
    assert np.abs(np.delete(fit.gain, 17) - 1).max() < 0.1


def test_fit_channels_finds_an_offset() -> None:
    """A dropped bias is an offset."""
    rng = np.random.default_rng(1)
    expected = rng.normal(size=(500, 8))
    actual = expected + 0.1 * rng.normal(size=expected.shape)
    actual[:, 3] -= 0.5
    assert metrics.fit_channels(actual=actual, expected=expected).offset[3] == pytest.approx(-0.5, abs=0.03)


def test_agreement_interval_holds_the_share() -> None:
    """Wilson's interval for 95 of 100 (reference value)."""
    low, high = metrics.agreement_interval(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=1e-3), pytest.approx(0.9785, abs=1e-3))


def test_sqnr_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many elements are looked at at a time."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((7, 11)).astype(np.float32)
    actual = expected + 1e-3 * rng.standard_normal((7, 11)).astype(np.float32)
    whole = metrics.sqnr_db(actual=actual, expected=expected)
    assert whole == pytest.approx(60, abs=2)
    monkeypatch.setattr(metrics, "AT_ONCE", 10)
    assert metrics.sqnr_db(actual=actual, expected=expected) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("dead", ["none", "zero", "twice the same"])
def test_hidden_state_is_recovered(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What least squares give, some rows at a time; also with a head that does not tell two channels apart."""
    monkeypatch.setattr(channels, "ROWS_AT_ONCE", 300)
    rng = np.random.default_rng(0)
    head, hidden = rng.standard_normal((1000, 64)).astype(np.float32), rng.standard_normal((9, 64))
    if dead != "none":
        head[:, 7] = 0.0 if dead == "zero" else head[:, 8]
    logits = (hidden @ head.T).astype(np.float32)
    expected, *_ = np.linalg.lstsq(head.astype(np.float64), logits.astype(np.float64).T, rcond=None)
    found = channels.recover_hidden(logits, head)
    assert np.allclose(found, expected.T, atol=1e-9)
    alive = [channel for channel in range(64) if dead == "none" or channel not in (7, 8)]
    assert np.allclose(found[:, alive], hidden[:, alive], atol=1e-5)
