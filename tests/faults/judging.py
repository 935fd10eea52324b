"""Ways to judge a faulty artifact: by the public command, and by one trace of the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import verify
from verifier.artifact.program import open_artifact
from verifier.audit.run import audit_weights
from verifier.checks.registry import CHECKS
from verifier.core.types import CheckResult, Missing, Recipe
from verifier.export.manifest import read_manifest
from verifier.families.answering import load_sample
from verifier.families.checkpoint import Checkpoint
from verifier.families.driver import caller_of
from verifier.families.llava.definition import build_definition
from verifier.families.registry import open_family
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import load_golden
from verifier.ladder.evidence import LayerEvidence
from verifier.ladder.gather import Traced, compare_layers, run_traced
from verifier.runner.local import LocalRunner

UNBANDED = "weights.*,layers.coverage,layers.finite,layers.kernel,layers.constants,layers.graph"


def results_of(check_id: str, evidence: Any) -> list[CheckResult]:
    """What one check says of some evidence."""
    check = next(c for c in CHECKS if c.id == check_id)
    return check.results(evidence)


def judged(pte: Path, model: Path, checks: str = UNBANDED) -> dict[str, object]:
    """`report.json` of a run of the public command."""
    report = pte.parent / "report"
    status = verify(pte, "--model", str(model), "--checks", checks, "--report", str(report))
    text: dict[str, object] = json.loads((report / "report.json").read_text())
    assert status == {"pass": 0, "fail": 1, "error": 2}[str(text["verdict"])]
    return text


def blamed(pte: Path, model: Path, checks: str = UNBANDED) -> tuple[str, str, str]:
    """Step, module and first line of the message that a faulty file is blamed with."""
    text = judged(pte, model, checks)
    assert text["verdict"] == "fail"
    blame = text["blame"]
    assert isinstance(blame, dict)
    return blame["step"], blame["module"], blame["message"].splitlines()[0]


def recipe_of(micro_model: Path) -> Recipe:
    """The recipe that a micro model was exported with."""
    manifest = read_manifest(micro_model / "model.pte")
    assert manifest is not None
    return manifest.recipe


def trace_conversation(pte: Path, micro_model: Path, micro: Checkpoint, folder: Path) -> Traced:
    """A short conversation on the traced runtime."""
    golden = load_golden(micro_model, micro.sha256)
    tokenizer = Tokenizer(micro_model)
    artifact, family = open_artifact(pte), open_family(micro)
    sample = load_sample(golden.images[0], tokenizer, family)
    folder.mkdir(exist_ok=True)
    made = run_traced(artifact, caller_of(artifact, family), [sample], LocalRunner(), folder, patches=16)
    assert not made.problem
    return made


def compare_with_trace(pte: Path, micro_model: Path, micro: Checkpoint, traced: Traced) -> LayerEvidence:
    """The evidence layer by layer, from a trace."""
    artifact, recipe = open_artifact(pte), recipe_of(micro_model)
    definition = build_definition(micro, max_len=768)
    layers = compare_layers(
        artifact,
        open_family(micro),
        recipe,
        audit_weights(artifact, open_family(micro), recipe),
        definition,
        traced,
        LocalRunner(),
    )
    assert not isinstance(layers, Missing)
    return layers
