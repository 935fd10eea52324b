"""`pytest --pte`: the same verdicts as tests, also in parallel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from verifier.gather.opening import Request, open_request, planned_cases

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("plugin")


def _pytest(folder: Path, *arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    own = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | own)


def test_pte_option_runs_the_gate_in_parallel(tmp_path: Path) -> None:
    """In an empty folder, on two workers: one test per check and case, all passed."""
    done = _pytest(
        tmp_path,
        "--pte",
        str(EMBEDDED_PTE),
        "--strict-markers",
        "-n",
        "2",
        "--pte-checks",
        "structure.limits,structure.memory,preprocess.constants,preprocess.sizes",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


def test_every_check_is_a_test_in_this_repository() -> None:
    """Its own settings are strict about markers: the families are declared by then, and every planned case is collected."""
    done = _pytest(ROOT, "--pte", str(EMBEDDED_PTE), "--collect-only", "-q")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    planned = planned_cases(open_request(Request(EMBEDDED_PTE)))
    collected = [line for line in done.stdout.splitlines() if line.startswith("llava_tiny.pte::")]
    assert len(collected) == len(planned) > 400


def test_failing_check_is_a_failing_test_with_its_message(tmp_path: Path) -> None:
    """Exit status 1 and the gate's own words, without a traceback."""
    broken = Path(shutil.copy(EMBEDDED_PTE, tmp_path / "llava.pte"))
    shutil.copy(EMBEDDED_PTE.with_name("llava_tiny.manifest.json"), tmp_path / "llava.manifest.json")
    data = bytearray(broken.read_bytes())
    data[-100] ^= 1
    broken.write_bytes(bytes(data))
    done = _pytest(tmp_path, "--pte", str(broken), "--pte-checks", "structure.*")
    assert done.returncode == 1
    assert "SHA-256 differs" in done.stdout
    assert "Traceback" not in done.stdout


def test_refused_file_is_a_usage_error(tmp_path: Path) -> None:
    """pytest's own status for bad usage, and the refusal's text."""
    done = _pytest(tmp_path, "--pte", str(tmp_path / "no.pte"))
    assert done.returncode == 4
    assert "no such file" in done.stderr + done.stdout


def test_budgets_and_apps_reach_the_gate(tmp_path: Path) -> None:
    """An option, or a setting of the ini file; one that cannot be used is refused before anything runs."""
    words = [f"--pte={EMBEDDED_PTE}", "--pte-checks=structure.limits"]
    chosen = ["--pte-budget", "kl=0.1", "--pte-app", "cpp,hf"]
    done = _pytest(tmp_path, *words, *chosen, "--pte-report", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "kept" / "report.json").read_text())
    assert report["request"]["budget"] == {"logits.kl_mean": 0.1}
    assert report["request"]["apps"] == ["cpp", "hf"]
    done = _pytest(tmp_path, *words, "--pte-app", "moon")
    assert (done.returncode, "no such app" in done.stderr + done.stdout) == (4, True)
    (tmp_path / "pytest.ini").write_text("[pytest]\npte_budget = speed=1\n")
    done = _pytest(tmp_path, *words)
    assert (done.returncode, "no such budget" in done.stderr + done.stdout) == (4, True)


def test_options_stand_in_the_help(tmp_path: Path) -> None:
    """Under their own heading."""
    help_text = _pytest(tmp_path, "--help").stdout
    assert "release gate for LLaVA on ExecuTorch" in help_text
    assert "--pte-model" in help_text


def test_ini_settings_stand_in_for_options(tmp_path: Path) -> None:
    """The checks of the ini file, unless an option says otherwise; the report goes beside it; two files side by side."""
    (tmp_path / "pytest.ini").write_text("[pytest]\npte_checks = structure.limits\npte_report = kept\n")
    done = _pytest(tmp_path, f"--pte={EMBEDDED_PTE}", "-q")
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        *("junit.xml", "report.html", "report.json", "summary.md"),
    ]
    other = Path(shutil.copy(EMBEDDED_PTE, tmp_path / "other.pte"))
    words = [f"--pte={EMBEDDED_PTE}", f"--pte={other}", "--pte-checks", "structure.limits,structure.memory", "-v"]
    done = _pytest(tmp_path, *words)
    assert done.returncode == 0, done.stdout
    for name in ("llava_tiny.pte", "other.pte"):
        assert f"{name}::structure.limits[program] PASSED" in done.stdout
        assert (tmp_path / "kept" / name / "report.json").is_file()


def test_only_chosen_checks_are_made(tmp_path: Path) -> None:
    """By marker and by name; what was deselected costs nothing, and stands in no report."""
    words = ["--pte", str(EMBEDDED_PTE), "--pte-report", str(tmp_path / "kept"), "-q"]
    done = _pytest(tmp_path, *words, "-m", "pte_structure", "-k", "limits or memory")
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout
    report = json.loads((tmp_path / "kept" / "report.json").read_text())
    assert {check["id"] for check in report["checks"]} == {"structure.limits", "structure.memory"}
    assert report["partial"] is True


def test_checkpoint_without_golden_data_is_tested(micro_model: Path, tmp_path: Path) -> None:
    """Its tests are those of the package's pictures; nobody makes anything first."""
    unwanted = shutil.ignore_patterns("golden.json", "images", "*.manifest.json")
    bare = Path(shutil.copytree(micro_model, tmp_path / "bare", ignore=unwanted))
    words = [
        "--pte",
        str(bare / "model.pte"),
        "--pte-model",
        str(bare),
        "--pte-checks",
        "greedy.free,splice.tokens",
        "-v",
    ]
    done = _pytest(tmp_path, *words, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "splice.tokens[photo_coffee] PASSED" in done.stdout
    assert len(list((tmp_path / "cache" / "llava-verifier" / "answers").glob("*.json"))) == 4
