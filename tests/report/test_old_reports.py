"""Reports of earlier versions: every form is made of them, and a new one is held against them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from verifier.commands.compare import main as compare
from verifier.commands.judge import main as judge
from verifier.report.as_json import schema
from verifier.report.render import main as render

OLD = sorted((Path(__file__).parent / "old").glob("*.json"))
"""`llava_tiny` with one wrong 4-bit weight, by `--checks weights.*,structure.*` of the version in the name."""


def test_each_version_is_kept() -> None:
    """A release that is left out would be read by luck: CONTRIBUTING.md says how its report is made."""
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    released = set(re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE))
    assert "0.1.0" in released
    assert released | {"0.1.0", "0.2.0"} <= {path.stem for path in OLD}


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_report_is_made_again(path: Path, tmp_path: Path) -> None:
    """With its own verdict and words, in each form."""
    assert render([str(path), "--report", str(tmp_path), "--quiet"]) == 1
    old = json.loads(path.read_text())
    failed = [check for check in old["checks"] if check["verdict"] == "fail"]
    assert failed
    for name in ("report.html", "summary.md", "junit.xml"):
        text = (tmp_path / name).read_text()
        assert failed[0]["id"] in text, name
        assert "196,608 elements" in text, name
    assert json.loads((tmp_path / "report.json").read_text()) == old


def test_what_the_schema_does_not_require_may_be_missing(tmp_path: Path) -> None:
    """A report of a version that knew none of it."""
    required = schema()["required"]
    old = json.loads(OLD[-1].read_text())
    assert old.keys() - set(required)
    (tmp_path / "report.json").write_text(json.dumps({name: old[name] for name in required}))
    assert render([str(tmp_path / "report.json"), "--report", str(tmp_path / "forms"), "--quiet"]) == 1
    for name in ("report.html", "summary.md", "junit.xml"):
        assert "196,608 elements" in (tmp_path / "forms" / name).read_text(), name


def test_a_new_report_is_held_against_an_old_one(
    flipped_report: Path, report_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same wrong weight is no news; a sound program has mended it, and is not a worse baseline for the broken one."""
    old = str(OLD[1])
    assert compare([old, str(flipped_report / "report.json"), "--quiet"]) == 0
    assert compare([old, str(report_folder / "report.json"), "--quiet"]) == 0
    assert compare([str(report_folder / "report.json"), old, "--quiet"]) == 1
    assert "weights" in capsys.readouterr().out


def test_a_report_without_facts_is_not_compared(flipped_report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.1.0 kept none: the refusal has the command that makes a report with them."""
    assert compare([str(OLD[0]), str(flipped_report / "report.json")]) == 2
    assert "python -m verifier.test_pte flipped.pte --json" in capsys.readouterr().err


def test_a_report_is_no_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    """What is judged again is what `--keep-evidence` kept, and the refusal says so."""
    assert judge([str(OLD[0])]) == 2
    assert "--keep-evidence" in capsys.readouterr().err
