"""The forms of a report that are text: JSON, JUnit, Markdown, annotations, the panel."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from verifier.core.errors import UsageError
from verifier.report.as_html import html
from verifier.report.as_json import LIMIT_BYTES, read_report
from verifier.report.as_junit import junit
from verifier.report.as_markdown import ANNOTATIONS, github_annotations, markdown
from verifier.report.render import main
from verifier.report.terminal import PANEL_LINES, panel_lines, print_report
from verifier.report.words import next_command, summary_lines

HOSTILE = "<script>alert(1)</script>\n::error::x `|*_[a](http://x) {{ 7*7 }} %0A \x00 ```"


@pytest.fixture(scope="module")
def passed(report_folder: Path) -> dict[str, Any]:
    """A report that passed."""
    return read_report(report_folder / "report.json")


@pytest.fixture(scope="module")
def failed(flipped_report: Path) -> dict[str, Any]:
    """A report that failed."""
    return read_report(flipped_report / "report.json")


def test_report_is_made_again_from_its_json(flipped_report: Path, tmp_path: Path) -> None:
    """The same four files, byte by byte, and the status of the run."""
    assert main([str(flipped_report / "report.json"), "--report", str(tmp_path), "--quiet"]) == 1
    for name in ("report.json", "junit.xml", "report.html", "summary.md"):
        assert (tmp_path / name).read_bytes() == (flipped_report / name).read_bytes(), name


def test_verdict_of_a_pass_is_status_0(report_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report that passed is printed as one."""
    assert main([str(report_folder / "report.json"), "--verbose"]) == 0
    said = capsys.readouterr().out
    assert "VERIFIED: llava_tiny.pte" in said
    assert "kvcache.chunks" in said


def test_failure_says_what_where_and_what_next(failed: dict[str, Any]) -> None:
    """In five lines that need nothing beside them."""
    title, meaning, first, message, command = summary_lines(failed)
    assert title.startswith("FAILED: flipped.pte")
    assert "Do not ship" in meaning
    assert "weights.tensors" in first
    assert "step lowering" in first
    assert "text_decoder.layers.2.feed_forward.w1" in first
    assert "1 of 196,608 elements differ" in message
    assert command.startswith("next: python -m verifier.test_pte")
    assert command.endswith("--checks weights.tensors --report report")


def _edited(data: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    made = copy.deepcopy(data)
    edit(made)
    return made


@pytest.mark.parametrize("words", [5, 3000])
@pytest.mark.parametrize("width", [40, 106])
def test_panel_has_at_most_twenty_lines(failed: dict[str, Any], words: int, width: int) -> None:
    """However long a message is; the verdict and the next command are always in it."""
    long = _edited(failed, lambda d: d["blame"].update(message="word " * words))
    lines = panel_lines(long, width)
    assert len(lines) + 2 <= PANEL_LINES
    assert "Do not ship" in " ".join(lines)
    assert "".join(next_command(long).split()) in "".join("".join(lines).split())


def test_plain_where_there_is_no_terminal(failed: dict[str, Any]) -> None:
    """No escape sequences, and no line wider than the console."""
    held = io.StringIO()
    print_report(failed, Console(file=held, width=100, force_terminal=False))
    assert "\x1b" not in held.getvalue()
    assert max(map(len, held.getvalue().splitlines()[3:])) <= 100


def test_names_with_brackets_are_printed_as_they_are(failed: dict[str, Any]) -> None:
    """The terminal's markup has brackets too: a folder `[red]` was left out, `[/b]` a traceback."""
    held = io.StringIO()
    odd = _edited(failed, lambda d: d["artifact"].update(path="out [red]/a[/b].pte"))
    print_report(odd, Console(file=held, width=200), verbose=True)
    assert "out [red]/a[/b].pte" in held.getvalue()


def test_summary_of_a_failure(failed: dict[str, Any]) -> None:
    """Markdown with the verdict, the place, the ladder and the failing check."""
    text = markdown(failed)
    assert text.startswith("## ❌ FAILED: flipped.pte")
    assert "step lowering" in text
    assert "| lowering | ❌ fail |" in text
    assert "--checks weights.tensors" in text
    assert "<details><summary>1 of" in text


def test_annotations_name_the_blamed_check_first(failed: dict[str, Any], passed: dict[str, Any]) -> None:
    """At most ten, each on one line; a pass is a notice."""
    many = _edited(failed, lambda d: [c.update(verdict="fail", message="a\nb") for c in d["checks"]])
    lines = github_annotations(many)
    assert len(lines) < ANNOTATIONS
    assert lines[0].startswith("::error title=weights.tensors text_decoder.layers.2.feed_forward.w1.weight::")
    assert all("\n" not in line for line in lines)
    assert "a%0Ab" in lines[1]
    assert github_annotations(passed)[0].startswith("::notice title=VERIFIED%3A llava_tiny.pte")


def test_no_verdict_is_said_to_be_none(failed: dict[str, Any]) -> None:
    """An error is a warning of CI's, not a pass."""
    unknown = _edited(failed, lambda d: d.update(verdict="error"))
    unknown["checks"] = [
        c | {"verdict": "error" if c["verdict"] == "fail" else c["verdict"]} for c in unknown["checks"]
    ]
    assert github_annotations(unknown)[0].startswith("::warning title=")
    assert markdown(unknown).startswith("## ⚠️ NOT VERIFIED")


def test_hostile_text_stays_text(failed: dict[str, Any]) -> None:
    """Whatever a report says, no form of it runs, breaks out, or fails."""

    def poison(data: dict[str, Any]) -> None:
        data["artifact"]["path"] = data["artifact"]["recipe"]["name"] = data["checkpoint"]["id"] = HOSTILE
        data["blame"].update(check=HOSTILE, case=HOSTILE, module=HOSTILE, message=HOSTILE)
        for check in data["checks"]:
            check.update(case=HOSTILE, message=HOSTILE, measured={HOSTILE: HOSTILE})
        data["target"].update(name=HOSTILE, versions={HOSTILE: HOSTILE})
        data["cost"]["stage_s"] = {HOSTILE: 1.0}

    bad = _edited(failed, poison)
    page = html(bad)
    assert "<script>alert" not in page
    assert "49" not in page.split("<main>")[0].split("<nav")[0].split("<h1>")[1]
    assert page.count("<script>") == 1
    text = markdown(bad)
    assert "<script>" not in text.replace("```", "").split("What to run next")[0]
    assert not any(line.startswith("::error::x") for line in text.splitlines())
    assert all("\n" not in line for line in github_annotations(bad))
    assert ElementTree.fromstring(junit(bad).split("?>", 1)[1]).find("testcase") is not None


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "verdict": lambda d: d.update(verdict="fine"),
    "schema": lambda d: d.update(schema="verifier.report/2"),
    "checks": lambda d: d.pop("checks"),
    "image": lambda d: d["figures"]["images"][0].update(jpeg_base64='" onerror="alert(1)'),
    "digest": lambda d: d["artifact"].update(sha256="../../etc/passwd"),
    "number": lambda d: d["figures"]["cache"].update(allowed_db="low"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_report_of_another_shape_is_refused(
    passed: dict[str, Any], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the place that is wrong, and status 2."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(_edited(passed, BROKEN[name])))
    assert main([str(path)]) == 2
    assert "not of schema verifier.report/1" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    """Cut, not strict, or nested without end."""
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(path)


def test_report_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Before it is read."""
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        file.truncate(LIMIT_BYTES + 1)
    with pytest.raises(UsageError, match="too large"):
        read_report(path)


def test_missing_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, with what to give instead."""
    assert main([str(tmp_path / "none.json")]) == 2
    assert "fix: give the report.json" in capsys.readouterr().err


def test_summary_is_appended(flipped_report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other steps of a run write there, too."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    copied = shutil.copy(flipped_report / "report.json", tmp_path)
    assert main([str(copied), "--summary", str(summary), "--annotations"]) == 1
    assert summary.read_text().startswith("before\n## ❌ FAILED")
    assert capsys.readouterr().out.startswith("::error title=weights.tensors")
