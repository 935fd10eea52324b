"""From the audit of a file to the records that checks look at."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import replace
from operator import itemgetter

from verifier.artifact.program import Artifact
from verifier.artifact.storage import Span
from verifier.audit.inventory import Constant
from verifier.audit.records import Audited, AuditRecords, Digest
from verifier.audit.run import Audit
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup
from verifier.core.types import Missing
from verifier.families.family import Parameter

DIGEST_BYTES = 8
"""Enough to tell two contents apart that nobody made alike on purpose; what the bytes are worth is the audit's question."""


def audit_records(artifact: Artifact, audit: Audit | Missing) -> AuditRecords | Missing:
    """The audit without what it was made from; every constant with the module that uses it."""
    if isinstance(audit, Missing):
        return audit
    return AuditRecords(
        tuple(replace(record, owner=owner) for record, owner in zip(audit.constants, _owners(audit), strict=True)),
        sum(parameter is not None for parameter in audit.parameters),
        audit.misplaced,
        audit.unused,
        audit.dead_bytes,
        _digests(artifact, audit),
    )


def _owners(audit: Audit) -> list[str]:
    """Of every constant the module whose instruction uses it; else the block of the latest weight before it, or the method, and the constant's role."""
    weights: dict[str, list[tuple[int, Parameter]]] = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is not None:
            weights.setdefault(constant.method, []).append((constant.instruction, parameter))
    return [_owner(audit, weights.get(record.method, []), record) for record in audit.constants]


def _owner(audit: Audit, weights: list[tuple[int, Parameter]], record: Audited) -> str:
    """`weights` of the constant's method, in the order of their instructions."""
    at = bisect_left(weights, record.instruction, key=itemgetter(0))
    if at < len(weights) and weights[at][0] == record.instruction:
        return weights[at][1].module
    block = audit.source.family.part_of(weights[at - 1][1].name) if at else record.method
    return f"{block}.{record.role.replace(' ', '_')}"


def _digests(artifact: Artifact, audit: Audit) -> dict[str, Digest]:
    """Digest and size of every constant that the checkpoint explains, by the name of its parameter; scales of groups and channels count
    with their weight."""
    made = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is not None:
            spans = _spans(constant)
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for span in spans:
                digest.update(artifact.storage.read(span).data)
            made[parameter.name] = Digest(digest.hexdigest(), sum(span.size for span in spans))
    return made


def _spans(constant: Constant) -> list[Span]:
    value = constant.value
    spans = [value.constant]
    if isinstance(value, GraphValue) and isinstance(value.quantization, (PerGroup, PerChannel)):
        spans.append(value.quantization.scales if isinstance(value.quantization.scales, Span) else None)
    return [span for span in spans if span is not None]
