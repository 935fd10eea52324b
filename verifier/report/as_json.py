"""`report.json`, schema `verifier.report/1`: strict JSON, numbers that are not finite become null with a reason."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.errors import UsageError
from verifier.files import replacing
from verifier.types import CheckResult

if TYPE_CHECKING:
    from verifier.pipeline import Run

SCHEMA = "verifier.report/1"


def finite(value: Any) -> Any:
    """The same structure without NaN and infinity: {"value": null, "reason": "NaN"} in their place; numpy scalars as Python's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"value": None, "reason": "NaN" if math.isnan(value) else ("infinity" if value > 0 else "-infinity")}
    return value


def _check(result: CheckResult) -> dict[str, Any]:
    fields = ("id", "step", "case", "verdict", "measured", "allowed", "where", "message")
    data = asdict(result)
    return {name: data[name] for name in fields}


def report(run: Run) -> dict[str, Any]:
    """The report of a run as plain data."""
    judgement, blame = run.judgement, run.judgement.blame
    where = blame.where if blame else None
    data = {
        "schema": SCHEMA,
        "verdict": judgement.verdict,
        "partial": run.partial,
        "artifact": {
            "path": str(run.artifact.path),
            "sha256": run.artifact.sha256,
            "bytes": run.artifact.header.file_bytes,
            "methods": sorted(run.artifact.methods),
            "recipe": {"name": run.recipe.name} | run.recipe.as_json(),
        },
        "checkpoint": {"id": run.checkpoint.name, "sha256": run.checkpoint.sha256},
        "target": run.target,
        "rungs": [asdict(rung) for rung in judgement.rungs],
        "checks": [_check(result) for result in run.results],
        "blame": None
        if blame is None
        else {
            "step": blame.step,
            "method": where.method if where else None,
            "module": where.module if where else None,
            "instruction": where.instruction if where else None,
            "message": f"{blame.id} {blame.case}: {blame.message}",
        },
        "cost": {"wall_s": run.wall_s, "peak_rss_bytes": run.peak_rss_bytes},
    }
    cleaned: dict[str, Any] = finite(data)
    return cleaned


def write_text(path: Path, text: str) -> None:
    """Write a report file, whole or not at all. Raises `UsageError`."""
    with replacing(path) as temporary:
        try:
            temporary.write_text(text)
        except OSError as error:
            raise UsageError(
                "the report cannot be written", got=error, where=path, fix="check space and permissions"
            ) from error


def write_json(run: Run, path: Path) -> None:
    """Write `report.json`."""
    write_text(path, json.dumps(report(run), indent=1, allow_nan=False) + "\n")
