"""`layers.*`: every instruction of the program against what its bytes define; blocks are in `verifier.checks.blocks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from verifier.checks.check import (
    IN_ORDER,
    Fields,
    Finding,
    Need,
    check,
    failed,
    need,
    one_case,
    passed,
    per_block,
    skipped,
    unverified,
)
from verifier.core.limits import limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER, EMBEDDING
from verifier.ladder.evidence import BlockError, LayerEvidence
from verifier.ladder.limits import LINEAR, SHARE, excess, over
from verifier.ladder.records import Aligned, Compared, NonFinite, RangeUse, is_linear
from verifier.measures.evidence import Evidence, Part

Record = TypeVar("Record", Compared, BlockError, RangeUse)
CLIPPED = limit("layers.ranges.clipped")
RESULT_LIMITS = tuple(f"layers.kernel{part}" for part in ("", ".linear", ".step", ".share_off", ".flushed"))


def _layers(evidence: Evidence) -> LayerEvidence | Missing:
    """The comparison; a program that could not be followed is to blame for that itself."""
    layers = evidence.layers
    if isinstance(layers, Missing):
        return replace(layers, reason=f"nothing could be compared: {layers.reason}")
    return layers


@need(Part.LAYERS, computed=True)
def followed(evidence: Evidence) -> LayerEvidence | Missing:
    """The program, followed instruction by instruction."""
    return _layers(evidence)


@dataclass(frozen=True)
class Blocks(Generic[Record]):
    """Records by the block that they are judged with, and all other evidence."""

    evidence: Evidence
    layers: LayerEvidence
    records: dict[str, list[Record]]


def by_block(
    choose: Callable[[LayerEvidence], Iterable[Record]], block: Callable[[LayerEvidence, Record], str]
) -> Need[Blocks[Record]]:
    """Records of the comparison that a check looks at, and the block that each is judged with."""

    def take(evidence: Evidence) -> Blocks[Record] | Missing:
        layers = _layers(evidence)
        if isinstance(layers, Missing):
            return layers
        found: dict[str, list[Record]] = {}
        for record in choose(layers):
            found.setdefault(block(layers, record), []).append(record)
        return Blocks(evidence, layers, found)

    return need(Part.LAYERS, computed=True)(take)


def _aligned(layers: LayerEvidence, record: Compared) -> str:
    return layers.alignment[record.method, record.instruction].block


RESULTS = by_block(lambda layers: layers.replay.compared, _aligned)
"""What the runtime computed, against the program's bytes on the same inputs."""
WITH_RECIPE = by_block(lambda layers: layers.replay.constants, _aligned)
"""The same bytes with the recipe's constants."""


def _difference(record: Compared) -> str:
    if record.reason:
        return record.reason
    at = f"at {list(record.index)} the runtime has {record.actual:.6g}, the reference {record.expected:.6g}"
    if record.kind == "step":
        return f"{record.worst:.3g} quantization steps, {100 * record.share_off:.3g} % of elements differ; {at}"
    if record.kind == "equal":
        return f"{100 * record.share_off:.3g} % of elements differ, although this operation does not round; {at}"
    if record.untipped:
        return f"{record.sqnr_db:.1f} dB, where {LINEAR.value:g} are required: the file's own constant gives this result, without a tie; {at}"
    return f"{record.sqnr_db:.1f} dB, {record.worst:.3g} times the rounding bound; {at}"


def _linears(records: list[Compared]) -> dict[str, float]:
    """How many 4-bit linears a block has, and the SQNR of the one that is furthest from the interpreter's, in dB."""
    found = [record for record in records if record.method == DECODER and is_linear(record)]
    if not found:
        return {}
    distinct = {(record.instruction, record.result) for record in found}
    return {"linears": len(distinct), "linear_db": min(record.sqnr_db for record in found)}


UNEXPLAINED = (
    "The difference is larger than independent rounding errors give, and smaller than the bound for any order of summation. None of the known "
    "orders of summation gives this result, so it may be rounding or a fault. Add this kernel's order to verifier/operators/order.py, or compare on another CPU."
)


def _judge_block(layers: LayerEvidence, records: list[Compared], hint: str) -> Finding:
    if not records:
        return unverified("nothing was compared in this block")
    unknown = [record for record in records if record.undefined]
    broken = [record for record in records if over(record)]
    shown = min(broken or unknown, key=lambda r: (r.call, r.instruction), default=None) or max(records, key=excess)
    aligned: Aligned = layers.alignment[shown.method, shown.instruction]
    where = Where(method=shown.method, instruction=shown.instruction, module=aligned.module, index=shown.index or None)
    share = excess(shown)
    measured: dict[str, object] = {
        "share_of_limit": share if math.isfinite(share) else None,
        "sqnr_db": None if math.isnan(shown.sqnr_db) else shown.sqnr_db,
        "propagated_db": shown.propagated_db,
        "compared": len(records),
        **_linears(records),
    }
    fields: Fields = {
        "measured": measured,
        "allowed": {"share_of_limit": SHARE.value},
        "where": where,
        "since": (shown.call, shown.instruction),
    }
    if broken:
        found = layers.wrong_nodes.get((shown.method, shown.instruction))
        inside = f"{found}. " if found else ""
        message = f"{aligned.module}: instruction {shown.instruction} in call {shown.call} [{shown.call_text}]: {_difference(shown)}. {inside}{hint}"
        return failed(message, fields)
    if unknown:
        message = f"{len(unknown)} of {len(records)} results cannot be judged, first instruction {shown.instruction} in call {shown.call}: {shown.reason}"
        return unverified(f"{message}. See layers.finite.", fields)
    if not any(record.elements for record in records):
        return unverified("all results of this block are empty: nothing was compared", where=where)
    unexplained = [record for record in records if record.unexplained]
    if unexplained:
        first = min(unexplained, key=lambda r: (r.call, r.instruction))
        module = layers.alignment[first.method, first.instruction].module
        where = Where(method=first.method, instruction=first.instruction, module=module, index=first.index or None)
        message = f"{module}: instruction {first.instruction} in call {first.call} [{first.call_text}]: {_difference(first)}. {UNEXPLAINED}"
        return unverified(message, fields).but(where=where, since=(first.call, first.instruction))
    message = f"{len(records)} results of {len({r.instruction for r in records})} instructions agree, closest {share:.2g} of the limit in {aligned.module}"
    return passed(message, fields).but(since=IN_ORDER)


@check(
    "layers.finite",
    step="lowering",
    needs=RESULTS,
    cases=per_block,
    overlap="a number that is not finite reaches the logits, which fail; this one says where it came from",
)
def finite(given: Blocks[Compared], case: str) -> Finding:
    """Every instruction that is given numbers gives numbers: no NaN, and no infinity except in an attention mask. The first instruction that does not
    is named."""
    records, layers = given.records.get(case, []), given.layers
    if not records:
        return unverified("no result of this block was examined")
    odd = [(r, r.non_finite) for r in records if r.non_finite is not None]
    bad = [(r, found) for r, found in odd if found.arises or math.isnan(found.value)]
    fields: Fields = {"measured": {"results": len(records), "wrong": len(bad)}, "allowed": {"wrong": 0}}
    if not bad:
        masks = f" except the infinities of an attention mask in {len(odd)} of them" if odd else ""
        return passed(f"{len(records)} results, all finite{masks}", fields)
    first, value = min(bad, key=lambda pair: (pair[0].call, pair[0].instruction))
    aligned = layers.alignment[first.method, first.instruction]
    where = Where(method=first.method, instruction=first.instruction, module=aligned.module, index=value.index)
    further = f" and {value.count - 1:,} more" if value.count > 1 else ""
    said = (
        f"{aligned.module}: instruction {first.instruction} in call {first.call} [{first.call_text}] gives {value.value:g} at "
        f"{_token(layers, first, value)}{list(value.index)}{further}"
    )
    if value.inherited:
        why = "an operand has such a value already: the cause is an earlier instruction"
    elif value.constant:
        why = "it uses a constant of the file that is not finite: see weights.* for the bytes, then export again"
    else:
        why = "no operand has such a value: the program overflows or divides by zero here. Check scales, epsilons and masks"
    return failed(f"{said}; {why}.", fields, where=where, since=(first.call, first.instruction))


def _token(layers: LayerEvidence, record: Compared, value: NonFinite) -> str:
    """Which token of the call an index stands for, where the call's length is known and an axis has it."""
    sizes, tokens = record.sizes, layers.tokens.get(record.call)
    if tokens == 1:
        return "its only token, "
    if tokens is not None and tokens in sizes:
        return f"token {value.index[sizes.index(tokens)]} of {tokens}, "
    if len(sizes) < 2:
        return ""
    return f"{'token' if record.method == EMBEDDING else 'row'} {value.index[-2]}, "


@check("layers.kernel", step="kernel", needs=RESULTS, cases=per_block, limit=RESULT_LIMITS)
def kernel(given: Blocks[Compared], case: str) -> Finding:
    """On the inputs that the runtime fed it, the result of every instruction equals what the program's bytes define, within the bound of rounding."""
    hint = "The program's bytes define another result: a kernel of this runtime, its threads or its memory is at fault. Try another CPU or thread count, and report it to ExecuTorch."
    return _judge_block(given.layers, given.records.get(case, []), hint)


@check(
    "layers.constants",
    step="lowering",
    needs=WITH_RECIPE,
    cases=per_block,
    limit=RESULT_LIMITS,
    overlap="wrong constants are found by their bytes; this one needs none of the recipe's bytes to be right",
)
def constants(given: Blocks[Compared], case: str) -> Finding:
    """Every instruction that uses a constant gives the same result with the constant that the recipe makes of the checkpoint. Ties of activations explain a
    difference only where the file's own constants show some."""
    hint = "With the constant that the recipe makes of the checkpoint the result differs: see weights.tensors for the bytes."
    return _judge_block(given.layers, given.records.get(case, []), hint)


@check(
    "layers.coverage",
    step="kernel",
    needs=followed,
    cases=one_case,
    overlap="an operand that changes between two instructions also gives a wrong result; this one says that no instruction wrote it",
)
def coverage(layers: LayerEvidence, _case: str) -> Finding:
    """Every instruction that computes a tensor was compared, in all three methods, and every operand still held what its producer had written."""
    replay = layers.replay
    alignment = layers.alignment
    total = sum(len(found) for found in replay.computing.values())
    holes = [
        (method, i)
        for method, found in replay.computing.items()
        for i in sorted(set(found).difference(replay.covered.get(method, ())))
    ]
    measured = {"instructions": total, "compared": total - len(holes), "handovers_broken": len(replay.changed_operands)}
    allowed = {"compared": total, "handovers_broken": 0}
    if replay.changed_operands:
        first = min(replay.changed_operands, key=lambda h: (h.call, h.instruction))
        module = alignment[first.method, first.instruction].module
        producer = (
            f"instruction {first.producer} wrote it"
            if first.producer is not None
            else "no instruction of this call wrote it"
        )
        return failed(
            f"{module}: operand {first.operand} of instruction {first.instruction} in call {first.call} changed before it was "
            f"read ({producer}): {first.differing:,} elements differ. Two tensors share memory, or a thread wrote outside its "
            "memory: check the memory plan.",
            measured=measured,
            allowed=allowed,
            where=Where(method=first.method, instruction=first.instruction, module=module),
        )
    if holes or not total:
        method, instruction = holes[0] if holes else ("", -1)
        where = Where(method=method, instruction=instruction, module=alignment[holes[0]].module) if holes else None
        message = f"{len(holes)} of {total} instructions were not compared, the first is {instruction} of {method}"
        return unverified(message, measured=measured, allowed=allowed, where=where)
    return passed(f"all {total} instructions that compute were compared", measured=measured, allowed=allowed)


RANGES = by_block(lambda layers: layers.replay.ranges, lambda _layers, _use: "program")
"""The conversions to static int8 of the whole program."""


@check(
    "layers.ranges",
    step="quantization",
    needs=RANGES,
    cases=one_case,
    limit="layers.ranges.clipped",
    optional=True,
    overlap="a range that cuts off also costs the vision layers their accuracy; this one says which range",
)
def ranges(given: Blocks[RangeUse], case: str) -> Finding:
    """The values that are converted to static int8 lie within the ranges that calibration recorded; an encoder of images that is not in static int8 has none."""
    uses = given.records.get(case, [])
    if not uses and given.evidence.recipe.vision != "int8":
        return skipped("the encoder of images is not in static int8: there are no int8 ranges")
    if not uses:
        return unverified("the program converts nothing to static int8: nothing was compared")
    over = [use for use in uses if not CLIPPED.admits(use.clipped)]
    shown = min(over, key=lambda u: (u.call, u.instruction)) if over else max(uses, key=lambda u: u.clipped)
    module = given.layers.alignment[shown.method, shown.instruction].module
    where = Where(method=shown.method, instruction=shown.instruction, module=module)
    said = f"{100 * shown.clipped:.3g} % of the input of {module} (instruction {shown.instruction}, node {shown.node})"
    fields: Fields = {"measured": {"clipped": shown.clipped}, "allowed": {"clipped": CLIPPED.value}, "where": where}
    count = len({(use.method, use.instruction, use.node) for use in uses})
    if over:
        places = len({(use.method, use.instruction, use.node) for use in over})
        message = (
            f"{said} lies outside its int8 range in call {shown.call}, allowed {100 * CLIPPED.value:g} %; {places} of {count} conversions are over this limit. "
            "The ranges do not fit the images: calibrate with images like those that users send, and export again."
        )
        return failed(message, fields)
    return passed(
        f"{count} conversions to static int8 are within their ranges; the largest share outside is {said}", fields
    )


# finite is before all comparisons: NaN compares with nothing
CHECKS = (coverage, finite, kernel, constants)
"""`ranges` stands behind the blocks in the registry, before what they cost."""
