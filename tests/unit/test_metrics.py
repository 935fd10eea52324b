"""Numbers about one array, or about counts."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.core import compare as metrics
from verifier.measures import channels


def test_agreement_interval_holds_the_share() -> None:
    """Wilson's interval for 95 of 100 (reference value)."""
    low, high = metrics.agreement_interval(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=1e-3), pytest.approx(0.9785, abs=1e-3))


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
