"""The composite action and the workflows: valid by GitHub's schemas, and their steps do what they say, run by a script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import EMBEDDED_PTE

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "verify-pte" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize(
    ("schema", "paths"), [("vendor.github-actions", [ACTION]), ("vendor.github-workflows", WORKFLOWS)]
)
def test_files_are_valid(schema: str, paths: list[Path]) -> None:
    """By the schemas that come with check-jsonschema."""
    assert paths
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_is_pasted_into_a_shell() -> None:
    """Inputs reach scripts through their environment: a file's name is no command."""
    for path in (ACTION, *WORKFLOWS):
        for script in _scripts(yaml.safe_load(path.read_text())):
            assert "${{" not in script, path


def _scripts(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["run"]] if isinstance(value.get("run"), str) else []
        return own + [script for each in value.values() for script in _scripts(each)]
    return [script for each in value for script in _scripts(each)] if isinstance(value, list) else []


@dataclass
class Job:
    """What a runner keeps between the steps of the action."""

    folder: Path
    inputs: dict[str, str]
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    log: str = ""

    def run(self) -> int:
        """All steps in order up to the first that fails, but for those that set up Python; its status."""
        action = yaml.safe_load(ACTION.read_text())
        given = {name: str(facts.get("default", "")) for name, facts in action["inputs"].items()} | self.inputs
        for step in action["runs"]["steps"]:
            if "run" not in step or step["name"] == "Install the verifier":
                continue
            status = self._step(step, given)
            if status:
                return status
        return 0

    def _step(self, step: dict[str, Any], given: dict[str, str]) -> int:
        output, summary = self.folder / "output", self.folder / "summary.md"
        output.write_text("")
        environment = os.environ | {name: self._filled(word, given) for name, word in step.get("env", {}).items()}
        environment |= {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        self.log += done.stdout + done.stderr
        self.steps[step.get("id", step["name"])] = dict(
            line.split("=", 1) for line in output.read_text().splitlines() if "=" in line
        )
        return done.returncode

    def _filled(self, word: str, given: dict[str, str]) -> str:
        def value(found: re.Match[str]) -> str:
            kind, _, name = found[1].partition(".")
            if kind == "inputs":
                return given[name]
            if kind == "github":
                return str(ACTION.parent)
            step, _, output = name.partition(".outputs.")
            return self.steps[step].get(output, "")

        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", value, str(word))


def test_action_passes_a_sound_file(tmp_path: Path) -> None:
    """Status 0, a notice, a summary, all forms of the report."""
    job = Job(tmp_path, {"pte": str(EMBEDDED_PTE), "checks": "structure.limits,structure.memory"})
    assert job.run() == 0, job.log
    assert job.steps["verify"] == {"status": "0", "verdict": "pass"}
    assert "::notice title=VERIFIED IN PART%3A llava_tiny.pte" in job.log
    assert (tmp_path / "summary.md").read_text().startswith("## ✅ VERIFIED IN PART")
    assert (tmp_path / "report" / "report.html").is_file()


def test_action_holds_a_faulty_file(flipped_report: Path, tmp_path: Path) -> None:
    """Status 1 at the last step, after the report was kept; the tensor is named; so is what is worse than the baseline."""
    baseline = Path(flipped_report) / "report.json"
    inputs = {"pte": str(flipped_report / "flipped.pte"), "checks": "weights.*", "baseline": str(baseline)}
    job = Job(tmp_path, inputs)
    assert job.run() == 1, job.log
    assert job.steps["verify"] == {"status": "1", "verdict": "fail"}
    assert "::error title=weights.tensors text_decoder.layers.2.feed_forward.w1.weight::" in job.log
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("## ❌ FAILED")
    assert "### SAME: flipped.pte against flipped.pte" in summary


def test_action_holds_what_cannot_be_verified(tmp_path: Path) -> None:
    """Status 2, and an annotation though there is no report; a name with shell in it is a name."""
    job = Job(tmp_path, {"pte": "$(touch pwned); no such.pte"})
    assert job.run() == 2, job.log
    assert job.steps["verify"]["verdict"] == "error"
    assert "::error title=NOT VERIFIED::" in job.log
    assert "no such file" in job.log
    assert not (tmp_path / "pwned").exists()
