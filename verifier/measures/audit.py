"""From the audit of a file to the records that checks look at."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from verifier.artifact.program import Artifact
from verifier.artifact.storage import Span
from verifier.audit.inventory import Constant
from verifier.audit.records import Audited, AuditRecords, Digest
from verifier.audit.run import Audit
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerChannel, PerGroup
from verifier.core.types import Missing

DIGEST_BYTES = 8
"""Enough to tell two contents apart that nobody made alike on purpose; what the bytes are worth is the audit's question."""


def audit_records(artifact: Artifact, audit: Audit | Missing) -> AuditRecords | Missing:
    """The audit without what it was made from; every constant with the module that uses it."""
    if isinstance(audit, Missing):
        return audit
    return AuditRecords(
        tuple(replace(record, owner=_owner(audit, record)) for record in audit.constants),
        sum(parameter is not None for parameter in audit.parameters),
        audit.misplaced,
        audit.unused,
        audit.dead_bytes,
        _digests(artifact, audit),
    )


def _owner(audit: Audit, record: Audited) -> str:
    """The module whose instruction uses a constant; else the block of the latest weight before it, or the method, and the constant's role."""
    block = record.method
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is None or constant.method != record.method or constant.instruction > record.instruction:
            continue
        if constant.instruction == record.instruction:
            return parameter.module
        block = audit.source.family.part_of(parameter.name)
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
