"""Limits that are computed for one result, block or machine from the rows of the table (verifier/core/limits.py)."""

from __future__ import annotations

import math

from verifier.core.limits import Limit, limit
from verifier.ladder.records import Compared, is_linear

SHARE, LINEAR = limit("layers.kernel"), limit("layers.kernel.linear")
STEP, SHARE_OFF = limit("layers.kernel.step"), limit("layers.kernel.share_off")


def excess(record: Compared) -> float:
    """How far a result is over its limit: above 1 is a failure; infinite for what cannot be compared."""
    if record.reason or math.isnan(record.worst) or math.isnan(record.share_off):
        return math.inf
    if is_linear(record):
        if SHARE.admits(record.worst) and not record.untipped:
            return record.worst
        return math.inf if math.isnan(record.sqnr_db) else 10 ** ((LINEAR.value - record.sqnr_db) / 20)
    if record.kind == "step":
        return max(0.0 if STEP.admits(record.worst) else record.worst, record.share_off / SHARE_OFF.value)
    if record.kind == "equal":
        return math.inf if record.worst else 0.0
    return record.worst / SHARE.value


def over(record: Compared) -> bool:
    """Whether a result is over its limit, or cannot be compared. What is NaN on both sides is not over: nothing is known of it."""
    return not record.undefined and not SHARE.admits(excess(record))


def least_db(id: str, value: float) -> Limit:
    """The limit of an SQNR that was computed for one case."""
    return Limit(id, value, "dB", "least", "derived", "computed from rows of the table")


def block_limit_db(elements: int) -> float:
    """SQNR that a block keeps when 3 of its activations and 0.1 % of the rest are tipped: 37 dB less the ties' share of the
    noise. 39 dB for a single token of 64 numbers, 45 dB for one of 256, 55 dB for a chunk. Measured on llava_tiny: 73 dB."""
    ties = limit("layers.graph.ties").value + limit("layers.graph.tie_share").value * elements
    return limit("layers.graph.rounding").value - 10 * math.log10(12 * ties / elements)


def tipped_limit_db(elements: int, tipped_db: float) -> float:
    """SQNR that a block keeps whose quantized rung, with every tie tipped, keeps `tipped_db` of itself. A tie before the first linear moves
    all that the second one is given, and tips there a share of the order of sqrt(1 / width): 45 dB are left of a single token of 4,096
    numbers, by one tie. Measured on a sound 7B: 46.6 dB in the worst of 64 blocks, for 53.8 dB that ties alone would have left."""
    return min(block_limit_db(elements), tipped_db - limit("layers.graph.tipped").value)


def static_limit_db(elements: int, cost_db: float) -> float:
    """SQNR that what a block of static int8 adds keeps against the same block computed elsewhere, if `cost_db` are what its int8 leaves of fp32: a tie that fp32
    tips is wrong by a whole step, 12 times the power of rounding; as many are tipped as in `block_limit_db`."""
    ties = limit("layers.graph.ties").value + limit("layers.graph.tie_share").value * elements
    return cost_db - 10 * math.log10(12 * ties / elements)


def rounded_limit_db(ratio: float) -> float:
    """SQNR that what an fp32 block adds keeps, if the stream that it is added to is `ratio` times as large, as quotient of norms."""
    return limit("layers.vision.fp32").value - 20 * math.log10(ratio) if math.isfinite(ratio) else math.inf


def chunk_limit_db(width: int, layers: int) -> float:
    """SQNR that logits keep when the same tokens come in other chunks: sums run in another order, so ties are tipped at
    every rounding to int8, and their errors add up. 32.9 dB for llava_tiny (measured: 49.0 dB at worst of 94 chunk ends in 12
    splits), 32.7 dB for 32 layers of 4,096.

    One rounding a layer was counted until a sound random model of 128 numbers and two layers came to 38.0 dB, of 39.3 that
    were allowed (`python -m verifier.faults --clean`, random-3); 32.8 are now.
    """
    return block_limit_db(width) - 10 * math.log10(limit("chunks.roundings_per_layer").value * layers + 1)


def reordered_limit_db(rounding_db: float) -> float:
    """SQNR that logits and cache rows keep when sums run in another order, in a decoder in which rounding activations costs `rounding_db`.

    A tipped tie tips others behind it, and in a deep decoder the two runs end up with roundings that have nothing to do with each other,
    though never more: twice the power of one run's own rounding, 3 dB less than `rounding_db`. 25.3 dB for a synthetic 7B (measured: 28.2 dB at
    worst of 64 chunk ends in 12 splits).
    """
    return rounding_db - limit("chunks.two_runs").value


def device_limit_db(layers: int, clean_db: float) -> float:
    """SQNR that image tokens keep from one architecture to another: one step on 0.1 % of the elements, 12 times the noise of
    rounding each, in every layer of the tower. `clean_db` is what a clean export leaves of the weakest image, where that is less than
    the row `device.host.vision`. 34 dB for llava_tiny's 4 (measured: 67 dB between AVX2 and an emulated cortex-a76, 38 dB between AVX-512 and one for
    a prototype; 12 dB where SMOPA is wrong), 26 dB for 24; 16.7 dB for a synthetic 7B, which keeps 11.2 (measured: 21.3 dB between AVX-512
    and an emulated cortex-a76, while every instruction agreed with the interpreter on both)."""
    noise_db = min(limit("device.host.vision").value, clean_db)
    return noise_db - 10 * math.log10(12 * SHARE_OFF.value) - 10 * math.log10(layers)
