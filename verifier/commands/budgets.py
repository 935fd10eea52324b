"""`python -m verifier.budgets PTE`: measure a clean program's size, memory and speed, and record the most that a release may have.

What is recorded lies in `budgets.json` beside the checkpoint; its figures may be edited by hand. `budget.*` hold later programs against it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from verifier.core.command import command
from verifier.core.errors import RunnerError, UsageError
from verifier.core.files import replacing
from verifier.core.limits import limit
from verifier.core.progress import hushed
from verifier.core.records import JsonObject
from verifier.export.manifest import package_versions
from verifier.families.answering import load_sample
from verifier.gather.children import measure_speed
from verifier.gather.opening import Opened, Request, open_request
from verifier.golden.records import BUDGET_SCHEMA, stored
from verifier.measures.evidence import golden_folder
from verifier.measures.program_facts import program_facts

FIGURES = ("file_bytes", "planned_bytes", "peak_rss_bytes", "prefill_loops", "decode_loops")
MARGINS = {name: limit(f"budget.{name}").value for name in FIGURES}
"""What is allowed, in units of what was measured (docs/budgets.md)."""


def measure_runs(opened: Opened, runs: int) -> dict[str, float]:
    """The largest of several measurements of each figure of a run. Raises `RunnerError` if the program did not finish every call."""
    square = opened.recipe.static_image_shape
    sample = load_sample(opened.golden.images[0], opened.tokenizer, opened.family, square=square)
    table = opened.family.embedding_table()
    found = [measure_speed(opened, table, sample.image) for _ in range(runs)]
    figures: dict[str, float] = {}
    for name in ("peak_rss_bytes", "prefill_loops", "decode_loops"):
        values = [getattr(each, name) for each in found]
        if None in values:
            failed = found[values.index(None)].result
            raise RunnerError("the program did not finish every call", got=f"{failed.outcome} {failed.message}")
        figures[name] = max(values)
    return figures


def write_budget(opened: Opened, runs: dict[str, float], reason: str) -> Path:
    """Add or replace what is recorded of this release and this kind of target."""
    path = golden_folder(opened.checkpoint) / "budgets.json"
    kind = opened.request.target.partition(":")[0]
    empty: JsonObject = {"schema": BUDGET_SCHEMA, "checkpoint_sha256": opened.checkpoint.sha256, "releases": {}}
    text = stored(path, BUDGET_SCHEMA) or empty  # `open_request` has read it: it is this checkpoint's
    program = program_facts(opened.artifact)
    file = {"file_bytes": program.file_bytes, "planned_bytes": program.planned_bytes}
    entry = text["releases"].setdefault(opened.recipe.release, {"targets": {}})
    entry["file"] = _recorded(file)
    entry["targets"][kind] = _recorded(runs)
    entry["provenance"] = {
        "reason": reason,
        "pte_sha256": opened.artifact.sha256,
        "versions": package_versions(),
        "margins": MARGINS,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(text, indent=1, allow_nan=False) + "\n")
    return path


def _recorded(figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Bytes as they are, times to six digits."""
    return {
        name: {"measured": value, "allowed": int(value * MARGINS[name])}
        if name.endswith("_bytes")
        else {"measured": float(f"{value:.6g}"), "allowed": float(f"{value * MARGINS[name]:.6g}")}
        for name, value in figures.items()
    }


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 written, 2 not."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.budgets", description="Record how large and how slow a release may be."
    )
    parser.add_argument("pte", type=Path, metavar="PTE", help="a clean program: verify it first")
    parser.add_argument("--model", help="checkpoint folder (default: the embedded llava_tiny)")
    parser.add_argument("--target", default="local", help="where to run; each kind of target has figures of its own")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="processes to measure; the largest counts")
    parser.add_argument("--reason", required=True, help="why; it is written down")
    options = parser.parse_args(arguments)
    if not 1 <= options.runs <= 100:
        raise UsageError("the number of runs is not usable", got=options.runs, expected="1 to 100")
    if len(options.reason.split()) < 2:
        raise UsageError("the reason says nothing", got=options.reason, expected="some words", fix="say why")
    opened = open_request(Request(options.pte, options.model, options.target, checks=("structure.*",)))
    with closing(opened.runner), hushed():
        runs = measure_runs(opened, options.runs)
    path = write_budget(opened, runs, options.reason)
    print(f"{path}: {opened.recipe.release} on {options.target}")
    for name, value in runs.items():
        print(f"{name:16} {value:,.4g}, budget {value * MARGINS[name]:,.4g}")
    return 0
