"""What a file is, apart from whether it is right: the facts that two reports are compared by."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from verifier.artifact.storage import Span
from verifier.audit.inventory import Constant
from verifier.audit.run import Audit
from verifier.backends.backend import GraphValue, PerChannel, PerGroup
from verifier.backends.calls import census_of
from verifier.checks.budget import planned_bytes
from verifier.checks.layers import worst_by_block
from verifier.evidence import Evidence
from verifier.families.conventions import ROLES
from verifier.types import Missing

DIGEST_BYTES = 8
"""Enough to tell two contents apart that nobody made alike on purpose; what the bytes are worth is the audit's question."""


def facts(evidence: Evidence) -> dict[str, Any]:
    """Sizes, the census of instructions and nodes, digests of the constants by name, the profile by block and image, and how far equally clean files lie apart."""
    artifact = evidence.artifact
    speed = evidence.runtime.speed
    measured = (
        {}
        if isinstance(speed, Missing)
        else {name: getattr(speed, name) for name in ("prefill_loops", "decode_loops", "peak_rss_bytes")}
    )
    tolerances = evidence.tolerances
    bands = {} if isinstance(tolerances, Missing) else tolerances.bands
    return {
        "max_seq_len": artifact.max_seq_len,
        "file_bytes": artifact.header.file_bytes,
        "planned_bytes": planned_bytes(artifact),
        "planned_bytes_of": {method: sum(artifact.plans[method].arenas_bytes) for method in ROLES},
        "census": census_of(artifact),
        "constants": {} if isinstance(evidence.audit, Missing) else _digests(evidence, evidence.audit),
        "profile_db": {} if isinstance(evidence.layers, Missing) else _finite(worst_by_block(evidence.layers.profile)),
        "speed": {name: value for name, value in measured.items() if value is not None},
        "prompt_rule": evidence.tokens.rule.as_json(),
        "noise": {name: {"spread": band.spread, "margin": band.margin} for name, band in bands.items()},
    }


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Without what could not be compared: `layers.profile` says why."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _digests(evidence: Evidence, audit: Audit) -> dict[str, dict[str, Any]]:
    """Digest and size of every constant that the checkpoint explains, by the name of its parameter; scales of groups and channels count
    with their weight."""
    made = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is not None:
            spans = _spans(constant)
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for span in spans:
                digest.update(evidence.artifact.storage.read(span).data)
            made[parameter.name] = {"digest": digest.hexdigest(), "bytes": sum(span.size for span in spans)}
    return made


def _spans(constant: Constant) -> list[Span]:
    value = constant.value
    spans = [value.constant]
    if isinstance(value, GraphValue) and isinstance(value.quantization, (PerGroup, PerChannel)):
        spans.append(value.quantization.scales if isinstance(value.quantization.scales, Span) else None)
    return [span for span in spans if span is not None]
