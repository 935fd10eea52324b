"""Limits of the comparison instruction by instruction. They are physical: derived from the arithmetic, never fitted."""

from __future__ import annotations

import math

from verifier.ladder.compared import Compared, is_linear

ALLOWED_SHARE = 1.0
"""Of the interpreter's running error bound, which is derived and not fitted (verifier/interpret/bounds.py). Measured on
llava_tiny with AVX-512: at most 0.63."""
ALLOWED_STEPS = 1.0
ALLOWED_OFF = 1e-3
"""int8: another order of a sum may tip a tie, by one step, on at most 0.1 % of elements (measured: 5.5e-5)."""
ALLOWED_LINEAR_DB = 120.0
"""4-bit linears, local. Integers are summed exactly, so only the order of fp32 sums is left and, on other vector units, ties of the
activations, which the bound holds. Exact sums came to 117.6 dB in one of a 7B's 225 linears, and to the same bits in all of llava_tiny's
(AVX-512): what is further off is summed again in the kernels' own order."""

ROUNDING_DB, TIES, TIE_SHARE = 37.0, 3, 1e-3
"""A decoder block against the eager quantized rung: rounding before a linear may tip ties of its int8 rows. Rounding every
activation to int8, an error of 1/12 squared step each, leaves 37 to 44 dB (FACTS); a tie is wrong by a whole step."""


def excess(record: Compared) -> float:
    """How far a result is over its limit: above 1 is a failure; infinite for what cannot be compared."""
    if record.reason or math.isnan(record.worst):
        return math.inf
    if is_linear(record):
        return 10 ** ((ALLOWED_LINEAR_DB - record.sqnr_db) / 20) if record.worst > ALLOWED_SHARE else record.worst
    if record.kind == "step":
        return max(
            record.worst / ALLOWED_STEPS if record.worst > ALLOWED_STEPS * 1.001 else 0.0,
            record.share_off / ALLOWED_OFF,
        )
    if record.kind == "equal":
        return math.inf if record.worst else 0.0
    return record.worst / ALLOWED_SHARE


def block_limit_db(elements: int) -> float:
    """SQNR that a block keeps when 3 of its activations and 0.1 % of the rest are tipped: 37 dB less the ties' share of the
    noise. 39 dB for a single token of 64 numbers, 45 dB for one of 256, 55 dB for a chunk. Measured on llava_tiny: 73 dB."""
    ties = TIES + TIE_SHARE * elements
    return ROUNDING_DB - 10 * math.log10(12 * ties / elements)


TIPPED_DB = 6.0
"""What a block may lose beyond what all its ties cost when they are tipped: the runtime's are some of them, and may cancel less."""


def tipped_limit_db(elements: int, tipped_db: float) -> float:
    """SQNR that a block keeps whose quantized rung, with every tie tipped, keeps `tipped_db` of itself. A tie before the first linear moves
    all that the second one is given, and tips there a share of the order of sqrt(1 / width): 45 dB are left of a single token of 4,096
    numbers, by one tie. Measured on a sound 7B: 46.6 dB in the worst of 64 blocks, for 53.8 dB that ties alone would have left."""
    return min(block_limit_db(elements), tipped_db - TIPPED_DB)


ROUNDINGS_PER_LAYER = 4
"""Activations become int8 before wq, wk and wv, before wo, before w1 and w3, and before w2; and once more before the head."""


def chunk_limit_db(width: int, layers: int) -> float:
    """SQNR that logits keep when the same tokens come in other chunks: sums run in another order, so ties are tipped at
    every rounding to int8, and their errors add up. 32.9 dB for llava_tiny (measured: 49.0 dB at worst of 94 chunk ends in 12
    splits), 32.7 dB for 32 layers of 4,096.

    One rounding a layer was counted until a sound random model of 128 numbers and two layers came to 38.0 dB, of 39.3 that
    were allowed (`python -m verifier.faults --clean`, random-3); 32.8 are now.
    """
    return block_limit_db(width) - 10 * math.log10(ROUNDINGS_PER_LAYER * layers + 1)


def reordered_limit_db(rounding_db: float) -> float:
    """SQNR that logits and cache rows keep when sums run in another order, in a decoder in which rounding activations costs `rounding_db`.

    A tipped tie tips others behind it, and in a deep decoder the two runs end up with roundings that have nothing to do with each other,
    though never more: twice the power of one run's own rounding, 3 dB less than `rounding_db`. 25.3 dB for a synthetic 7B (measured: 28.2 dB at
    worst of 64 chunk ends in 12 splits).
    """
    return rounding_db - 10 * math.log10(2)


VISION_NOISE_DB = 21.0
"""int8 rounding leaves this of the weakest image tokens, at worst of all golden images (tolerances.json)."""


def device_limit_db(layers: int, clean_db: float) -> float:
    """SQNR that image tokens keep from one architecture to another: one step on 0.1 % of the elements, 12 times the noise of
    rounding each, in every layer of the tower. `clean_db` is what a clean export leaves of the weakest image, where that is less than
    `VISION_NOISE_DB`. 34 dB for llava_tiny's 4 (measured: 67 dB between AVX2 and an emulated cortex-a76, 38 dB between AVX-512 and one for
    a prototype; 12 dB where SMOPA is wrong), 26 dB for 24; 16.7 dB for a synthetic 7B, which keeps 11.2 (measured: 21.3 dB between AVX-512
    and an emulated cortex-a76, while every instruction agreed with the interpreter on both)."""
    return min(VISION_NOISE_DB, clean_db) - 10 * math.log10(12 * ALLOWED_OFF) - 10 * math.log10(layers)
