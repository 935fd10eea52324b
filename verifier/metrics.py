"""Numbers about one array, or about counts. What compares two arrays is `verifier.core.compare` alone."""

from __future__ import annotations

import numpy as np
from scipy import stats

from verifier.core.compare import Array


def top2_margin(logits: Array) -> Array:
    """Largest minus second largest logit of each row [N, V] -> [N]."""
    top = np.partition(logits, -2, axis=-1)
    out: Array = top[..., -1] - top[..., -2]
    return out


def agreement_interval(hits: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
