"""Evidence that was kept is judged again: the same verdict field by field, without a model, a runtime or the artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.core.archive import RECORD
from verifier.core.python import child_environment
from verifier.record.judging import SCHEMA, keep, kept

pytestmark = pytest.mark.xdist_group("embedded")
HEAVY = ("torch", "executorch", "torchao", "transformers", "tokenizers", "sentencepiece", "PIL")
PROGRAM = f"import sys; from verifier.judge import main; status = main(); print(sorted(sys.modules.keys() & set({HEAVY}))); sys.exit(status)"


def _judge(evidence: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(evidence), "--quiet", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=child_environment(), timeout=120)


def _without_cost(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in report.items() if name != "cost"}


def test_the_same_report_without_a_model_or_a_runtime(report_folder: Path, tmp_path: Path) -> None:
    """Every verdict, value, limit, message and figure; nothing heavy is imported for it."""
    judged = _judge(report_folder / "evidence", "--json", str(tmp_path / "again.json"))
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert judged.stdout.splitlines()[-1] == "[]"
    assert _without_cost(tmp_path / "again.json") == _without_cost(report_folder / "report.json")


def _results(path: Path, families: Iterable[str]) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text())["checks"] if c["id"].partition(".")[0] in families]


def test_some_checks_alone_give_their_results(report_folder: Path, tmp_path: Path) -> None:
    """As in the whole run; a pass speaks for what was chosen."""
    judged = _judge(report_folder / "evidence", "--checks", "kvcache.*,greedy.*", "--json", str(tmp_path / "some.json"))
    assert judged.returncode == 0 and "VERIFIED IN PART" in judged.stdout
    families = ("kvcache", "greedy")
    assert _results(tmp_path / "some.json", families) == _results(report_folder / "report.json", families)


@pytest.mark.parametrize(("stated", "status"), [("kl=0.0001", 1), ("kl=5,sqnr=10", 0), ("speed=1", 2)])
def test_budgets_are_stated_when_it_is_judged(report_folder: Path, tmp_path: Path, stated: str, status: int) -> None:
    """A price is judged anew without a run; the report says by which budgets, and a name that none has is refused."""
    words = ("--checks", "logits.teacher_forced", "--budget", stated, "--json", str(tmp_path / "again.json"))
    judged = _judge(report_folder / "evidence", *words)
    assert judged.returncode == status, judged.stdout + judged.stderr
    if status == 2:
        assert "no such budget" in judged.stderr
        return
    report = json.loads((tmp_path / "again.json").read_text())
    assert report["request"]["budget"]["logits.kl_mean"] == float(stated.removeprefix("kl=").partition(",")[0])
    failed = [check["message"] for check in report["checks"] if check["verdict"] == "fail"]
    assert all("by the budget that was stated" in message for message in failed)


def test_a_number_that_was_changed_in_the_evidence_fails(report_folder: Path, tmp_path: Path) -> None:
    """The verdict comes from the evidence: other logits, another verdict."""
    gathered = kept(report_folder / "evidence")
    first, *others = gathered.evidence.cases
    assert first.logits is not None
    wrong = replace(first, logits=np.roll(first.logits, 1, axis=-1))
    keep(replace(gathered, evidence=replace(gathered.evidence, cases=(wrong, *others))), tmp_path / "evidence")
    judged = _judge(tmp_path / "evidence")
    assert judged.returncode == 1 and "FAILED" in judged.stdout


def test_checks_that_nothing_was_gathered_for_are_not_verified(tmp_path: Path) -> None:
    """Evidence of the constants alone says nothing of the cache."""
    assert verify(EMBEDDED_PTE, "--checks", "weights.*", "--keep-evidence", str(tmp_path / "evidence")) == 0
    judged = _judge(tmp_path / "evidence", "--checks", "kvcache.*")
    assert judged.returncode == 2 and "no check asked for the cache" in judged.stdout


@pytest.mark.parametrize("damage", ["nothing", "cut", "other", "earlier"])
def test_what_is_no_evidence_is_refused(report_folder: Path, tmp_path: Path, damage: str) -> None:
    """No folder, a record that was cut off, one of something else, or of an earlier version, whose fields may mean something else: exit
    status 2, and what to do."""
    folder = tmp_path / "evidence"
    if damage != "nothing":
        folder.mkdir()
        record = (report_folder / "evidence" / RECORD).read_text()
        damaged = {"cut": record[: len(record) // 2], "other": json.dumps({"schema": "x"})}
        (folder / RECORD).write_text(damaged.get(damage) or record.replace(SCHEMA, "verifier.evidence/0.2.0"))
    judged = _judge(folder)
    assert judged.returncode == 2
    said = judged.stdout + judged.stderr
    assert "NOT VERIFIED" in said and "to fix" in said
    assert ("verifier.evidence/0.2.0" in said and SCHEMA in said) == (damage == "earlier")


def test_evidence_never_replaces_something_else(tmp_path: Path) -> None:
    """Refused before anything runs; the folder stays as it was."""
    (tmp_path / "thesis.tex").write_text("years")
    assert verify(EMBEDDED_PTE, "--keep-evidence", str(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
