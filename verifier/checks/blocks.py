"""`layers.*`: what every block of the program adds to the residual stream, against the rung next to it and against fp32."""

from __future__ import annotations

import math
from collections.abc import Iterable

from verifier.checks.bands import Measure, band_limit, judge, price_limit
from verifier.checks.check import IN_ORDER, Fields, Finding, check, failed, passed, unverified
from verifier.checks.layers import Blocks, by_block
from verifier.core.prices import judged_by
from verifier.core.types import Where
from verifier.families.conventions import DECODER, ENCODER
from verifier.ladder.evidence import BlockError, LayerEvidence
from verifier.measures.evidence import Subjects

PROFILE, VISION = "layers.profile_db", "layers.vision_db"
TOWER_LIMITS = ("layers.graph.ties", "layers.graph.tie_share", "layers.graph.tipped", "layers.vision.fp32")
GRAPH_LIMITS = tuple(f"layers.graph.{part}" for part in ("rounding", "ties", "tie_share", "tipped", "second_tie"))


def _named(_layers: LayerEvidence, error: BlockError) -> str:
    return error.block


ADDED = by_block(lambda layers: layers.blocks, _named)
"""What each block adds to the residual stream, against the rung above."""
TOWER = by_block(lambda layers: layers.tower, _named)
"""What each layer of the encoder of images adds, against fp32."""
DEPTH = by_block(lambda layers: layers.profile, _named)
"""The stream behind each block, against fp32."""
PRICE_HINT = "Compare recipes: the int8 ranges of its activations, and the images that they were calibrated on."
GRAPH_HINT = "Its graph is not the model's: check this block's export, passes and partition (transposes, masks, positions, residuals)."


def decoder_blocks(subjects: Subjects) -> tuple[str, ...]:
    """Blocks that add something to the decoder's residual stream."""
    return tuple(b for b in subjects.blocks if b.startswith(DECODER) and b != f"{DECODER}.input")


def vision_blocks(subjects: Subjects) -> tuple[str, ...]:
    """Blocks of the vision tower."""
    return tuple(block for block in subjects.blocks if block.startswith(ENCODER))


def with_profile(subjects: Subjects) -> tuple[str, ...]:
    """Blocks behind which the stream of a whole layer is known."""
    return tuple(b for b in subjects.blocks if b.startswith(f"{ENCODER}.layers") or b.endswith("feed_forward"))


@check("layers.graph", step="lowering", needs=ADDED, cases=decoder_blocks, limit=GRAPH_LIMITS)
def graph(given: Blocks[BlockError], case: str) -> Finding:
    """On the program's own input, every block of the decoder adds to the residual stream what the eager quantized model adds."""
    return _against_rung(given.records.get(case, []), case)


def _against_rung(errors: list[BlockError], case: str) -> Finding:
    if not errors:
        return _not_found(case).but(since=(0, 0))
    # the first call in which it departs: later ones inherit a wrong cache
    broken = [error for error in errors if not error.holds]
    shown = broken[0] if broken else min(errors, key=lambda e: e.sqnr_db - e.limit_db)
    limit_db = shown.limit_db
    fields: Fields = {
        "measured": {"sqnr_db": None if shown.reason else shown.sqnr_db},
        "allowed": {"sqnr_db": limit_db if math.isfinite(limit_db) else None},
        "where": Where(method=case.partition(".")[0], module=case),
        "since": (shown.call, 0) if broken else IN_ORDER,
    }
    if broken and not shown.fed:
        said = f"cannot be judged in call {shown.call}: the residual stream that enters it has non-finite values, see layers.finite"
        return unverified(f"{case}: {said}", fields)
    if broken and shown.reason:
        said = f"cannot be compared with the quantized model in call {shown.call}: {shown.reason}"
        return failed(f"{_with_half(case, shown)}: {said}. {GRAPH_HINT}", fields)
    if broken:
        said = f"differs from the quantized model in call {shown.call}: {shown.sqnr_db:.1f} dB, allowed at least {limit_db:.1f} dB"
        return failed(f"{_with_half(case, shown)}: {said}. {GRAPH_HINT}", fields)
    return passed(f"equals the quantized model, {shown.sqnr_db:.0f} dB or more", fields)


def _with_half(case: str, error: BlockError) -> str:
    """The block, and which half of a layer of the encoder: the projector is compared with the last of them."""
    return f"{case} ({error.part})" if case.startswith(f"{ENCODER}.layers") else case


def _not_found(case: str) -> Finding:
    where = Where(method=case.partition(".")[0], module=case)
    message = (
        f"cannot locate the block {case} in the program: no instruction applies the weight of its norm to the residual stream. "
        "Export the model again."
    )
    return failed(message, where=where, accuses="graph")


@check(
    "layers.vision",
    step="lowering",
    needs=ADDED,
    cases=vision_blocks,
    limit=TOWER_LIMITS,
    overlap="a loss in a layer of the tower also shows in the image tokens; this one says which layer",
)
def vision(given: Blocks[BlockError], case: str) -> Finding:
    """On the program's own input, every layer of the encoder of images adds what the eager model adds whose operators round to int8 where the file's do."""
    if given.layers.no_tower_rung:
        return unverified(f"there is no quantized model of the encoder to compare with: {given.layers.no_tower_rung}")
    return _against_rung(given.records.get(case, []), case)


@check(
    "layers.price",
    step="quantization",
    needs=TOWER,
    cases=vision_blocks,
    limit=judged_by(VISION),
    explained_by="layers.ranges",
    overlap="what a layer costs also shows in the image tokens; this one says which layer",
)
def price(given: Blocks[BlockError], case: str) -> Finding:
    """On the program's own input, what every layer of the encoder of images adds is as near to fp32 as its calibrated band says, or as the budget of quantization
    allows where there is none."""
    return _banded(given, case, VISION, what="output against fp32", hint=PRICE_HINT)


def _banded(given: Blocks[BlockError], case: str, metric: str, *, what: str, hint: str) -> Finding:
    """Hold the worst of each image against the band of block and image, or the budget; the one closest to its limit is reported."""
    errors, evidence = given.records.get(case, []), given.evidence
    if not errors:
        return _not_found(case)
    where = Where(method=case.partition(".")[0], module=case)
    unlike = next((error for error in errors if error.reason), None)
    if unlike is not None:
        give = failed if unlike.fed else unverified
        said = f"{case}, {what}, on {unlike.sample}: cannot be compared in call {unlike.call}: {unlike.reason}"
        return give(f"{said}. See layers.finite.", measured={metric: None}, where=where)
    worst = worst_by_block(errors)
    limits = {name: band_limit(evidence, metric, name) or price_limit(evidence, metric, name) for name in worst}
    odd = [name for name, value in worst.items() if math.isnan(value)]
    shown = odd[0] if odd else min(worst, key=lambda name: worst[name] - limits[name].value)
    measure = Measure(metric, worst[shown], "dB", case=shown)
    image = shown.removeprefix(f"{case} on ")
    return judge(evidence, case, [measure], what=f"{case}, {what}, on {image}", where=where, hint=hint)


@check(
    "layers.profile",
    step="quantization",
    needs=DEPTH,
    cases=with_profile,
    limit=judged_by(PROFILE),
    explained_by="layers.ranges",
    overlap="the error over depth is what the layers add up to; this one compares it with calibration",
)
def profile(given: Blocks[BlockError], case: str) -> Finding:
    """The error against fp32 behind every block stays within its calibrated band, or within the budget of quantization where there is none."""
    what, hint = "residual stream after it against fp32", "Compare recipes: group size, quantizer, calibration images."
    finding = _banded(given, case, PROFILE, what=what, hint=hint)
    share = given.layers.error_shares.get(case)
    known = {} if share is None else {"share_of_logit_error": share}
    return finding.but(measured={**finding.fields.get("measured", {}), **known})


def worst_by_block(errors: Iterable[BlockError]) -> dict[str, float]:
    """The smallest SQNR of every block over the calls of one image, by `BLOCK on IMAGE`; NaN where one of them could not be compared."""
    worst: dict[str, float] = {}
    for error in errors:
        name = f"{error.block} on {error.sample}"
        known = worst.get(name, math.inf)
        worst[name] = min(known, error.sqnr_db) if math.isfinite(error.sqnr_db) and not math.isnan(known) else math.nan
    return worst


CHECKS = (graph, vision)
"""`price` and `profile` stand behind others in the registry."""
