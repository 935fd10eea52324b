"""`report.json`, schema `verifier.report/1`: strict JSON, numbers that are not finite become null with a reason.

Every other form of the report is made from this one, so that it can be made again without a run.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.core.errors import UsageError
from verifier.core.files import replacing
from verifier.core.records import JsonObject, read_record
from verifier.core.types import CheckResult
from verifier.record.verdict import share_of_tolerance

if TYPE_CHECKING:
    from verifier.record.judging import Run

SCHEMA = "verifier.report/1"
LIMIT_BYTES = 64 << 20
"""A report of 7B has a tenth of it."""
Report = JsonObject


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


def _check(result: CheckResult) -> JsonObject:
    fields = ("id", "step", "case", "verdict", "measured", "allowed", "where", "message")
    data, share = asdict(result), share_of_tolerance(result)
    made = {name: data[name] for name in fields} | {"share": None if share is None else round(share[0], 4)}
    return made | ({"accuses": result.accuses} if result.accuses else {})


def _blame(blame: CheckResult | None) -> JsonObject | None:
    if blame is None:
        return None
    where = blame.where
    return {
        "check": blame.id,
        "case": blame.case,
        "step": blame.step,
        "method": where.method if where else None,
        "module": where.module if where else None,
        "instruction": where.instruction if where else None,
        "index": where.index if where else None,
        "message": f"{blame.id} {blame.case}: {blame.message}",
    }


def report(run: Run) -> Report:
    """The report of a run as plain data."""
    judgement, gathered = run.judgement, run.gathered
    program, recipe = gathered.evidence.program, gathered.evidence.recipe
    data = {
        "schema": SCHEMA,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "partial": run.partial,
        "artifact": {
            "path": str(program.path),
            "sha256": program.sha256,
            "bytes": program.file_bytes,
            "methods": sorted(program.methods),
            "recipe": {"name": recipe.name} | recipe.as_json(),
        },
        "checkpoint": {"id": gathered.checkpoint, "sha256": gathered.checkpoint_sha256},
        "request": {
            "model": gathered.asked.model,
            "target": gathered.asked.target,
            "tokenizer": None if gathered.asked.tokenizer is None else str(gathered.asked.tokenizer),
            "budget": gathered.evidence.prices,
            "apps": list(gathered.evidence.subjects.apps),
        },
        "goldens": asdict(gathered.evidence.goldens),
        "target": run.target,
        "rungs": [asdict(rung) for rung in judgement.rungs],
        "checks": [_check(result) for result in run.results],
        "blame": _blame(judgement.blame),
        "exceptions": [
            {"check": result.id, "case": result.case, "message": result.exception}
            for result in run.results
            if result.exception
        ],
        "facts": run.facts,
        "figures": run.figures,
        "environment": {name: getattr(gathered.machines, name) for name in ("cpu", "cores", "versions")},
        "cost": asdict(gathered.cost),
    }
    cleaned: Report = finite(data)
    return cleaned


@cache
def schema() -> JsonObject:
    """The published JSON Schema (draft 2020-12)."""
    made: JsonObject = json.loads(
        (resources.files("verifier.report") / "report.schema.json").read_text(encoding="utf-8")
    )
    return made


def read_report(path: Path) -> Report:
    """A report that somebody wrote. Raises `UsageError` for what is missing, too large, not JSON, or not of the schema."""
    import jsonschema

    fix = "give the report.json that --report or --json wrote"

    def valid(record: Report) -> Report:
        try:
            jsonschema.validate(record, schema(), cls=jsonschema.Draft202012Validator)
        except jsonschema.ValidationError as error:
            at = "/".join(str(part) for part in error.absolute_path) or "the top"
            raise UsageError(
                f"the report is not of schema {SCHEMA}", got=f"{error.message[:200]} at {at}", where=path, fix=fix
            ) from error
        return record

    return read_record(
        path, valid, what="the report cannot be read", error=UsageError, fix=fix, limit_bytes=LIMIT_BYTES
    )


def write_text(path: Path, text: str) -> None:
    """Write a report file, whole or not at all. Raises `UsageError`."""
    with replacing(path) as temporary:
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(
                "the report cannot be written", got=error, where=path, fix="check space and permissions"
            ) from error


def write_json(data: Report, path: Path) -> None:
    """Write `report.json`."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
