"""What to say of integers that no known quantizer makes: whether each is the nearest to its weight at the file's own scales, or who knows what they are.

Scales may be chosen in ways that nobody here knows, and HQQ's depend on the order of fp32 sums on the machine that exported. Where most tensors of a
kind are exactly what a known quantizer makes, one that is not was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verifier.audit.records import INTEGERS, Audited
from verifier.core.limits import limit
from verifier.families.conventions import ENCODER

LOSS, FEW = limit("weights.quantizer.loss"), limit("weights.quantizer.few")


def judge_by_own_scales(constants: Sequence[Audited]) -> list[Audited]:
    """The audit of a file without manifest: integers that no known quantizer makes are explained by their own scales where they are right at them."""
    kinds: dict[str, list[Audited]] = {}
    for record in constants:
        if record.not_nearest is not None and (kind := _kind(record)):
            kinds.setdefault(kind, []).append(record)
    unlike = {kind for kind, records in kinds.items() if 2 * sum(bool(r.reason) for r in records) > len(records)}
    judged = [_judged(record) if _kind(record) in unlike and record.scheme else record for record in constants]
    tables = [new for old, new in zip(constants, judged, strict=True) if new.role == "embedding" and new != old]
    return [_as_its_table(one, tables[0]) if tables and one.role == "embedding scales" else one for one in judged]


def _as_its_table(scales: Audited, table: Audited) -> Audited:
    """Scales at which a table was judged: nothing is known of them but what the table says, which is wrong itself where some integers are."""
    if not table.explained:
        return replace(scales, reason=table.reason, explained=False)
    return replace(
        scales, reason="", wrong=0, noted=table.noted or "the integers of the table are judged at these scales"
    )


def _kind(record: Audited) -> str:
    """Tensors that are quantized alike: linears of the decoder, weights of the tower, the table."""
    if record.role not in INTEGERS:
        return ""
    return f"{record.method} {'weights' if record.method == ENCODER else record.role}"


def _judged(record: Audited) -> Audited:
    if not record.reason or record.scheme_db is None or record.sqnr_db is None or record.not_nearest is None:
        return record
    nearest = (
        f"the nearest known scheme is {record.scheme}, which makes {100 * (record.equal or 0):.1f} % of its integers"
    )
    alike = LOSS.admits(record.scheme_db - record.sqnr_db)
    share = record.not_nearest / record.elements
    if alike and not record.not_nearest:
        note = f"no known quantizer chose its scales, and each integer is the nearest to its weight; {nearest}"
        return replace(record, reason="", wrong=0, noted=note)
    if alike and not FEW.admits(share):
        said = f"no known quantizer makes its integers, and {100 * share:.1f} % are not the nearest to their weight; {nearest}"
        return replace(record, reason=said, explained=False)
    if alike:
        said = f"{record.not_nearest:,} of {record.elements:,} integers are not the nearest to their weight at the file's own scales"
        return replace(record, reason=said, wrong=record.not_nearest)
    return record
