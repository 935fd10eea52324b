"""`layers.*`: every instruction and every block of the program against the rung next to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from verifier.checks.common import Check, Measure, band_of, judge, one_case, per_block
from verifier.core.limits import limit
from verifier.evidence import Evidence, Subjects
from verifier.golden import Band
from verifier.ladder.align import Aligned
from verifier.ladder.blocks import BlockError
from verifier.ladder.compared import Compared, is_linear
from verifier.ladder.finite import NonFinite
from verifier.ladder.gather import LayerEvidence
from verifier.ladder.limits import SHARE, excess, over
from verifier.ladder.replay import Replay
from verifier.types import CheckResult, Where

Record = TypeVar("Record", Compared, BlockError)
PROFILE, VISION = "layers.profile_db", "layers.vision_db"


def _compared(
    check: Check, evidence: Evidence, cases: Iterable[str]
) -> tuple[LayerEvidence, Replay] | list[CheckResult]:
    """The comparison, or the results if there is none: the program's fault is a failure, a gap of the interpreter an error."""
    layers = evidence.layers
    if layers is None:
        return [check.error(case, "the program was not traced") for case in cases]
    if layers.replay is None:
        give = check.failed if layers.culprit == "program" else check.error
        return [give(case, f"nothing could be compared: {layers.problem}") for case in cases]
    return layers, layers.replay


def _by_block(records: Iterable[Record], block: Callable[[Record], str]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(block(record), []).append(record)
    return found


def _difference(record: Compared) -> str:
    if record.reason:
        return record.reason
    at = f"at {list(record.index)} the runtime has {record.actual:.6g}, the reference {record.expected:.6g}"
    if record.kind == "step":
        return f"{record.worst:.3g} quantization steps, {100 * record.share_off:.3g} % of elements differ; {at}"
    if record.kind == "equal":
        return f"{100 * record.share_off:.3g} % of elements differ where nothing is rounded; {at}"
    return f"{record.sqnr_db:.1f} dB, {record.worst:.3g} times the rounding bound; {at}"


def _judge_records(
    check: Check, evidence: Evidence, choose: Callable[[Replay], tuple[Compared, ...]], hint: str
) -> list[CheckResult]:
    """One result for each block: the first instruction in program order that is over its limit is named."""
    cases = evidence.subjects.blocks
    ready = _compared(check, evidence, cases)
    if isinstance(ready, list):
        return ready
    layers, replay = ready
    found = _by_block(choose(replay), lambda record: layers.alignment[record.method, record.instruction].block)
    judged = [_judge_block(check, layers, case, found.get(case, []), hint) for case in cases]
    return _first_first(judged)


def _first_first(judged: list[tuple[tuple[int, int], CheckResult]]) -> list[CheckResult]:
    """Results in the order in which they went wrong, by call and place in it: what came first is to blame."""
    return [result for _, result in sorted(judged, key=lambda pair: pair[0])]


NEVER = (1 << 30, 0)


def _linears(records: list[Compared]) -> dict[str, float]:
    """How many 4-bit linears a block has, and the SQNR of the one that is furthest from the interpreter's, in dB."""
    found = [record for record in records if record.method == "text_decoder" and is_linear(record)]
    if not found:
        return {}
    distinct = {(record.instruction, record.result) for record in found}
    return {"linears": len(distinct), "linear_db": min(record.sqnr_db for record in found)}


UNEXPLAINED = (
    "This is more than independent roundings leave, and less than an unlucky order of summation may: none of the known orders gives it, so "
    "neither a fault nor rounding is shown. Add this kernel's order to verifier/operators/order.py, or compare on another CPU."
)


def _judge_block(
    check: Check, layers: LayerEvidence, case: str, records: list[Compared], hint: str
) -> tuple[tuple[int, int], CheckResult]:
    if not records:
        return NEVER, check.error(case, "nothing was compared in this block")
    unknown = [record for record in records if record.undefined]
    broken = [record for record in records if over(record)]
    shown = min(broken or unknown, key=lambda r: (r.call, r.instruction), default=None) or max(records, key=excess)
    aligned: Aligned = layers.alignment[shown.method, shown.instruction]
    where = Where(method=shown.method, instruction=shown.instruction, module=aligned.module, index=shown.index or None)
    share = excess(shown)
    measured = {
        "share_of_limit": share if math.isfinite(share) else None,
        "sqnr_db": None if math.isnan(shown.sqnr_db) else shown.sqnr_db,
        "propagated_db": shown.propagated_db,
        "compared": len(records),
        **_linears(records),
    }
    allowed = {"share_of_limit": SHARE.value}
    if broken:
        found = layers.descents.get((shown.method, shown.instruction))
        inside = f"{found}. " if found else ""
        message = f"{aligned.module}: instruction {shown.instruction} ({shown.operator}) in call {shown.call}: {_difference(shown)}. {inside}{hint}"
        return (shown.call, shown.instruction), check.failed(
            case, message, measured=measured, allowed=allowed, where=where
        )
    if unknown:
        message = f"{len(unknown)} of {len(records)} results cannot be judged, first instruction {shown.instruction} in call {shown.call}: {shown.reason}"
        return (shown.call, shown.instruction), check.error(
            case, f"{message}. See layers.finite.", measured=measured, allowed=allowed, where=where
        )
    if not any(record.elements for record in records):
        return NEVER, check.error(case, "all results of this block are empty: nothing was compared", where=where)
    unexplained = [record for record in records if record.unexplained]
    if unexplained:
        first = min(unexplained, key=lambda r: (r.call, r.instruction))
        module = layers.alignment[first.method, first.instruction].module
        where = Where(method=first.method, instruction=first.instruction, module=module, index=first.index or None)
        message = f"{module}: instruction {first.instruction} ({first.operator}) in call {first.call}: {_difference(first)}. {UNEXPLAINED}"
        return (first.call, first.instruction), replace(
            check.error(case, message), measured=measured, allowed=allowed, where=where
        )
    message = f"{len(records)} results of {len({r.instruction for r in records})} instructions agree, closest {share:.2g} of the limit in {aligned.module}"
    return NEVER, check.passed(case, message, measured=measured, allowed=allowed, where=where)


def finite(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every instruction makes numbers of numbers: no NaN, and no infinity but that of an attention mask. The first one that does not is named."""
    cases = evidence.subjects.blocks
    ready = _compared(check, evidence, cases)
    if isinstance(ready, list):
        return ready
    layers, replay = ready
    found = _by_block(replay.compared, lambda record: layers.alignment[record.method, record.instruction].block)
    return _first_first([_finite(check, layers, case, found.get(case, [])) for case in cases])


def _finite(
    check: Check, layers: LayerEvidence, case: str, records: list[Compared]
) -> tuple[tuple[int, int], CheckResult]:
    if not records:
        return NEVER, check.error(case, "nothing was looked at in this block")
    odd = [(r, r.non_finite) for r in records if r.non_finite is not None]
    bad = [(r, found) for r, found in odd if found.arises or math.isnan(found.value)]
    fields = {"measured": {"results": len(records), "wrong": len(bad)}, "allowed": {"wrong": 0}}
    if not bad:
        masks = f", {len(odd)} of them with the infinities of an attention mask" if odd else ""
        return NEVER, check.passed(case, f"{len(records)} results, all numbers{masks}", **fields)
    first, value = min(bad, key=lambda pair: (pair[0].call, pair[0].instruction))
    aligned = layers.alignment[first.method, first.instruction]
    where = Where(method=first.method, instruction=first.instruction, module=aligned.module, index=value.index)
    given = f" and {value.count - 1:,} more" if value.count > 1 else ""
    said = (
        f"{aligned.module}: instruction {first.instruction} ({first.operator}) in call {first.call} gives {value.value:g} at "
        f"{_token(layers, first, value)}{list(value.index)}{given}"
    )
    if value.inherited:
        why = "an operand holds it already: an earlier result is to blame"
    elif value.constant:
        why = "a constant of the file that it uses is not finite: see weights.* for the bytes, then export again"
    else:
        why = "all that it was given are numbers: an overflow, or a division by zero, in what the file says. Check scales, epsilons and masks"
    return (first.call, first.instruction), check.failed(case, f"{said}; {why}.", where=where, **fields)


def _token(layers: LayerEvidence, record: Compared, value: NonFinite) -> str:
    """Which token of the call an index stands for, where the call's length is known and an axis has it."""
    sizes, tokens = record.sizes, layers.tokens.get(record.call)
    if tokens == 1:
        return "its one token, "
    if tokens is not None and tokens in sizes:
        return f"token {value.index[sizes.index(tokens)]} of {tokens}, "
    if len(sizes) < 2:
        return ""
    return f"{'token' if record.method == 'token_embedding' else 'row'} {value.index[-2]}, "


def kernel(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The runtime computes every instruction as the program's bytes say, on its own inputs."""
    hint = "The file says otherwise: a kernel of this runtime, its threads or its memory is at fault. Try another CPU or thread count, and report it to ExecuTorch."
    return _judge_records(check, evidence, lambda replay: replay.compared, hint)


def constants(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Instructions that use constants give the same with the constants that the recipe makes of the checkpoint."""
    hint = "With the checkpoint's own weights it gives something else: see weights.tensors for the bytes."
    return _judge_records(check, evidence, lambda replay: replay.constants, hint)


def coverage(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every instruction that computes a tensor was compared, in all three methods, and every operand was what its producer made."""
    ready = _compared(check, evidence, ("program",))
    if isinstance(ready, list):
        return ready
    layers, replay = ready
    alignment = layers.alignment
    total = sum(len(found) for found in replay.computing.values())
    holes = [
        (method, i)
        for method, found in replay.computing.items()
        for i in sorted(found - replay.covered.get(method, frozenset()))
    ]
    measured = {"instructions": total, "compared": total - len(holes), "handovers_broken": len(replay.handovers)}
    allowed = {"compared": total, "handovers_broken": 0}
    if replay.handovers:
        first = min(replay.handovers, key=lambda h: (h.call, h.instruction))
        module = alignment[first.method, first.instruction].module
        producer = f"instruction {first.producer} made it" if first.producer is not None else "it was there before"
        return [
            check.failed(
                "program",
                f"{module}: operand {first.operand} of instruction {first.instruction} in call {first.call} is not what its producer "
                f"made ({producer}): {first.differing:,} elements changed in between. Two tensors share memory, or a thread wrote "
                "where it must not: check the memory plan.",
                measured=measured,
                allowed=allowed,
                where=Where(method=first.method, instruction=first.instruction, module=module),
            )
        ]
    if holes or not total:
        method, instruction = holes[0] if holes else ("", -1)
        where = Where(method=method, instruction=instruction, module=alignment[holes[0]].module) if holes else None
        message = f"{len(holes)} of {total} instructions were not compared, the first is {instruction} of {method}"
        return [check.error("program", message, measured=measured, allowed=allowed, where=where)]
    return [
        check.passed(
            "program", f"all {total} instructions that compute were compared", measured=measured, allowed=allowed
        )
    ]


CLIPPED = limit("layers.ranges.clipped")


def ranges(check: Check, evidence: Evidence) -> list[CheckResult]:
    """What is converted to static int8 lies within the ranges that calibration gave it."""
    ready = _compared(check, evidence, ("program",))
    if isinstance(ready, list):
        return ready
    layers, replay = ready
    if not replay.ranges:
        return [check.error("program", "the program converts nothing to static int8: nothing was looked at")]
    over = [use for use in replay.ranges if not CLIPPED.admits(use.clipped)]
    shown = min(over, key=lambda u: (u.call, u.instruction)) if over else max(replay.ranges, key=lambda u: u.clipped)
    module = layers.alignment[shown.method, shown.instruction].module
    where = Where(method=shown.method, instruction=shown.instruction, module=module)
    said = f"{100 * shown.clipped:.3g} % of what {module} is given (instruction {shown.instruction}, node {shown.node})"
    fields = {"measured": {"clipped": shown.clipped}, "allowed": {"clipped": CLIPPED.value}, "where": where}
    count = len({(use.method, use.instruction, use.node) for use in replay.ranges})
    if over:
        places = len({(use.method, use.instruction, use.node) for use in over})
        message = (
            f"{said} lies outside its int8 range in call {shown.call}, allowed {100 * CLIPPED.value:g} %; so it is in {places} of {count} places. "
            "The ranges do not fit the images: calibrate with images like those that users send, and export again."
        )
        return [check.failed("program", message, **fields)]
    return [
        check.passed(
            "program", f"{count} conversions to static int8, each within its range; most is cut off {said}", **fields
        )
    ]


GRAPH_HINT = "Its graph is not the model's: check this block's export, passes and partition (transposes, masks, positions, residuals)."


def graph(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every block of the decoder adds to the residual stream what the eager quantized model adds, on the program's own input."""
    cases = _decoder_blocks(evidence.subjects)
    ready = _compared(check, evidence, cases)
    if isinstance(ready, list):
        return ready
    found = _by_block(ready[0].blocks, lambda error: error.block)
    return _first_first([_graph(check, case, place, found.get(case, [])) for place, case in enumerate(cases)])


def _graph(check: Check, case: str, place: int, errors: list[BlockError]) -> tuple[tuple[int, int], CheckResult]:
    where = Where(method=case.partition(".")[0], module=case)
    if not errors:
        return (0, place), _not_found(check, case)
    # the first call in which it departs: later ones inherit a wrong cache
    broken = [error for error in errors if not error.holds]
    shown = broken[0] if broken else min(errors, key=lambda e: e.sqnr_db - e.limit_db)
    limit_db = shown.limit_db
    fields = {
        "measured": {"sqnr_db": None if shown.reason else shown.sqnr_db},
        "allowed": {"sqnr_db": limit_db if math.isfinite(limit_db) else None},
        "where": where,
    }
    if broken and not shown.fed:
        said = f"cannot be judged in call {shown.call}: the stream that enters it is not of numbers alone, see layers.finite"
        return (shown.call, place), check.error(case, f"{case}: {said}", **fields)
    if broken and shown.reason:
        said = f"cannot be compared with the quantized model in call {shown.call}: {shown.reason}"
        return (shown.call, place), check.failed(case, f"{case}: {said}. {GRAPH_HINT}", **fields)
    if broken:
        said = f"departs from the quantized model in call {shown.call}: {shown.sqnr_db:.1f} dB, allowed at least {limit_db:.1f} dB"
        return (shown.call, place), check.failed(case, f"{case}: {said}. {GRAPH_HINT}", **fields)
    return NEVER, check.passed(case, f"as the quantized model computes it, {shown.sqnr_db:.0f} dB and more", **fields)


def _not_found(check: Check, case: str) -> CheckResult:
    where = Where(method=case.partition(".")[0], module=case)
    message = f"{case}: its place in the program was not found: a norm of it is missing, or reads something else. Export again."
    return check.failed(case, message, where=where, accuses="graph")


def vision(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every layer of the vision tower adds what the fp32 definition adds, but for calibrated int8 noise, on its own input."""
    cases = _vision_blocks(evidence.subjects)
    ready = _compared(check, evidence, cases)
    if isinstance(ready, list):
        return ready
    found = _by_block(ready[0].blocks, lambda error: error.block)
    return [_vision(check, evidence, case, found.get(case, [])) for case in cases]


def _vision(check: Check, evidence: Evidence, case: str, errors: list[BlockError]) -> CheckResult:
    return _banded(check, evidence, case, VISION, errors, what="what it adds, against fp32", hint=GRAPH_HINT)


def _banded(
    check: Check, evidence: Evidence, case: str, metric: str, errors: list[BlockError], *, what: str, hint: str
) -> CheckResult:
    """Hold the worst of each image against the band of block and image; the one closest to its limit is reported."""
    if not errors:
        return _not_found(check, case)
    where = Where(method=case.partition(".")[0], module=case)
    unlike = next((error for error in errors if error.reason), None)
    if unlike is not None:
        give = check.failed if unlike.fed else check.error
        said = f"{case}, {what}, on {unlike.sample}: cannot be compared in call {unlike.call}: {unlike.reason}"
        return give(case, f"{said}. See layers.finite.", measured={metric: None}, where=where)
    worst = worst_by_block(errors)
    band = band_of(evidence, metric)
    limits = {name: band.allowed(name) for name in worst} if isinstance(band, Band) else {}
    odd = [name for name, value in worst.items() if math.isnan(value)]
    shown = odd[0] if odd else min(worst, key=lambda name: worst[name] - (limits.get(name) or math.inf))
    measure = Measure(metric, worst[shown], "dB", case=shown)
    image = shown.removeprefix(f"{case} on ")
    return judge(check, evidence, case, [measure], what=f"{case}, {what}, on {image}", where=where, hint=hint)


def profile(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The error against fp32 behind every block stays in its calibrated band: quantization costs what it should."""
    cases = _with_profile(evidence.subjects)
    ready = _compared(check, evidence, cases)
    if isinstance(ready, list):
        return ready
    layers, _ = ready
    found = _by_block(layers.profile, lambda error: error.block)
    results = []
    for case in cases:
        what, hint = "the error behind it, against fp32", "Compare recipes: group size, quantizer, calibration images."
        result = _banded(check, evidence, case, PROFILE, found.get(case, []), what=what, hint=hint)
        share = layers.error_shares.get(case)
        known = {} if share is None else {"share_of_logit_error": share}
        results.append(replace(result, measured=result.measured | known))
    return results


def _decoder_blocks(subjects: Subjects) -> tuple[str, ...]:
    return tuple(b for b in subjects.blocks if b.startswith("text_decoder") and b != "text_decoder.input")


def _vision_blocks(subjects: Subjects) -> tuple[str, ...]:
    return tuple(block for block in subjects.blocks if block.startswith("vision_encoder"))


def _with_profile(subjects: Subjects) -> tuple[str, ...]:
    """Blocks behind which the stream of a whole layer is known."""
    return tuple(b for b in subjects.blocks if b.startswith("vision_encoder.layers") or b.endswith("feed_forward"))


def worst_by_block(errors: Iterable[BlockError]) -> dict[str, float]:
    """The smallest SQNR of every block over the calls of one image, by `BLOCK on IMAGE`; NaN where one of them could not be compared."""
    worst: dict[str, float] = {}
    for error in errors:
        name = f"{error.block} on {error.sample}"
        known = worst.get(name, math.inf)
        worst[name] = min(known, error.sqnr_db) if math.isfinite(error.sqnr_db) and not math.isnan(known) else math.nan
    return worst


CHECKS = (
    Check("layers.coverage", "kernel", one_case, coverage),
    Check("layers.finite", "lowering", per_block, finite),  # before all comparisons: NaN compares with nothing
    Check("layers.kernel", "kernel", per_block, kernel),
    Check("layers.constants", "lowering", per_block, constants),
    Check("layers.graph", "lowering", _decoder_blocks, graph),
    Check("layers.ranges", "quantization", one_case, ranges),
    Check("layers.vision", "lowering", _vision_blocks, vision),
)
PROFILE_CHECK = Check("layers.profile", "quantization", _with_profile, profile)
