"""What a file is, apart from whether it is right: the facts that two reports are compared by."""

from __future__ import annotations

import math
from dataclasses import asdict

from verifier.checks.blocks import worst_by_block
from verifier.core.records import JsonObject
from verifier.core.types import Missing
from verifier.measures.evidence import Evidence


def facts(evidence: Evidence) -> JsonObject:
    """Sizes, the calling convention, the census of instructions and nodes, digests of the constants by name, the profile by block and image, and how far equally clean files lie apart."""
    program, audit, speed = evidence.program, evidence.audit, evidence.runtime.speed
    measured = (
        {}
        if isinstance(speed, Missing)
        else {name: getattr(speed, name) for name in ("prefill_loops", "decode_loops", "peak_rss_bytes")}
    )
    tolerances = evidence.tolerances
    bands = {} if isinstance(tolerances, Missing) else tolerances.bands
    return {
        "convention": evidence.convention.name,
        "max_seq_len": program.max_seq_len,
        "file_bytes": program.file_bytes,
        "planned_bytes": program.planned_bytes,
        "planned_bytes_of": {method: sum(planned.arenas_bytes) for method, planned in program.memory.items()},
        "census": {} if isinstance(program.census, Missing) else program.census,
        "constants": {} if isinstance(audit, Missing) else {name: asdict(one) for name, one in audit.digests.items()},
        "profile_db": {} if isinstance(evidence.layers, Missing) else _finite(worst_by_block(evidence.layers.profile)),
        "speed": {name: value for name, value in measured.items() if value is not None},
        "prompt_rule": evidence.tokens.rule.as_json(),
        "noise": {name: {"spread": band.spread, "margin": band.margin} for name, band in bands.items()},
    }


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Without what could not be compared: `layers.profile` says why."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
