"""Limits of the comparison instruction by instruction. They are physical: derived from the arithmetic, never fitted."""

from __future__ import annotations

import math

from verifier.ladder.replay import Compared

ALLOWED_SHARE = 1.0
"""Of the interpreter's running error bound, which is derived and not fitted (verifier/interpret/bounds.py). Measured on
llava_tiny with AVX-512: at most 0.63."""
ALLOWED_STEPS = 1.0
ALLOWED_OFF = 1e-3
"""int8: another order of a sum may tip a tie, by one step, on at most 0.1 % of elements (measured: 5.5e-5)."""
ALLOWED_LINEAR_DB = 120.0
"""4-bit linears, local. The interpreter repeats XNNPACK's arithmetic exactly, so only the order of fp32 sums is left
(measured: no difference at all with AVX-512; 133 dB and more in the prototype)."""


def excess(record: Compared) -> float:
    """How far a result is over its limit: above 1 is a failure; infinite for what cannot be compared."""
    if record.reason or math.isnan(record.worst):
        return math.inf
    if "FullyConnected" in record.operator and record.kind == "bound":
        return 10 ** ((ALLOWED_LINEAR_DB - record.sqnr_db) / 20) if record.worst > ALLOWED_SHARE else record.worst
    if record.kind == "step":
        return max(
            record.worst / ALLOWED_STEPS if record.worst > ALLOWED_STEPS * 1.001 else 0.0,
            record.share_off / ALLOWED_OFF,
        )
    if record.kind == "equal":
        return math.inf if record.worst else 0.0
    return record.worst / ALLOWED_SHARE
