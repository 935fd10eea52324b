"""Baseline against candidate: the first line says the right thing, and only what is worse beyond its budget fails."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import export
from verifier.commands.compare import main
from verifier.comparison.compare import Comparison, compare_reports
from verifier.comparison.rows import Row, number_row
from verifier.core.errors import UsageError
from verifier.report.as_json import read_report

Edit = Callable[[dict[str, Any]], object]
SMALL, LARGE = 0.5, 6.0


@pytest.fixture(scope="module")
def clean(report_folder: Path) -> dict[str, Any]:
    """The report of the embedded program."""
    report = read_report(report_folder / "report.json")
    report["facts"].setdefault("convention", "ExecuTorch's LLaVA")
    return report


def _edited(data: dict[str, Any], edit: Edit) -> dict[str, Any]:
    made = copy.deepcopy(data)
    edit(made)
    return made


def _checks(data: dict[str, Any], id: str) -> list[dict[str, Any]]:
    return [check for check in data["checks"] if check["id"] == id]


def _move(id: str, metric: str, by: float, only: str = "") -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for check in _checks(data, id):
            if check["case"].startswith(only):
                check["measured"][metric] += by

    return edit


def _sink(block: str) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for name in data["facts"]["profile_db"]:
            if name.startswith(block):
                data["facts"]["profile_db"][name] -= LARGE

    return edit


def _row(comparison: Comparison, subject: str, what: str = "") -> Row:
    return next(row for row in comparison.rows if row.subject.startswith(subject) and what in row.what)


def test_file_is_the_same_as_itself(clean: dict[str, Any]) -> None:
    """No row is anything but the same, none is unknown."""
    comparison = compare_reports(clean, copy.deepcopy(clean))
    assert {row.change for row in comparison.rows} == {"same"}
    assert comparison.first_line.startswith("SAME: llava_tiny.pte against llava_tiny.pte")
    assert comparison.refused == ()


EDITS: dict[str, tuple[Edit, str, str, str, bool]] = {
    "larger file": (
        lambda d: d["facts"].update(file_bytes=d["facts"]["file_bytes"] * 11 // 10),
        "size",
        "",
        "worse",
        True,
    ),
    "slightly larger file": (
        lambda d: d["facts"].update(file_bytes=d["facts"]["file_bytes"] * 101 // 100),
        "size",
        "",
        "worse",
        False,
    ),
    "smaller file": (
        lambda d: d["facts"].update(file_bytes=d["facts"]["file_bytes"] // 2),
        "size",
        "",
        "better",
        False,
    ),
    "more memory": (
        lambda d: d["facts"].update(planned_bytes=d["facts"]["planned_bytes"] * 2),
        "memory",
        "planned",
        "worse",
        True,
    ),
    "worse logits": (_move("logits.teacher_forced", "logits.sqnr_db", -LARGE), "logits", "middle", "worse", True),
    "logits within noise": (
        _move("logits.teacher_forced", "logits.sqnr_db", -SMALL),
        "logits",
        "middle",
        "same",
        False,
    ),
    "better logits": (_move("logits.teacher_forced", "logits.sqnr_db", LARGE), "logits", "middle", "better", False),
    "one worse layer": (
        _sink("text_decoder.layers.2"),
        "layers of text",
        "",
        "worse",
        True,
    ),
    "worse images": (_move("vision.embedding", "vision.sqnr_db", -LARGE), "vision", "", "worse", True),
    "an operator more outside": (
        lambda d: d["facts"]["census"]["text_decoder"].update({"aten::bmm.out": 4}),
        "delegation",
        "",
        "worse",
        True,
    ),
    "a wrong answer": (lambda d: _checks(d, "greedy.golden")[3].update(verdict="fail"), "captions", "", "worse", True),
    "other words": (
        lambda d: d["figures"]["images"][2]["answer"].update(actual="A cat."),
        "captions",
        "",
        "changed",
        False,
    ),
    "a failing gate": (lambda d: d.update(verdict="fail"), "verdict", "", "worse", True),
    "a gate that cannot judge": (lambda d: d.update(verdict="error"), "verdict", "", "unknown", False),
    "a method less": (lambda d: d["artifact"].update(methods=["text_decoder"]), "structure", "", "worse", True),
    "a metadata method less": (
        lambda d: d["artifact"]["methods"].remove("get_bos_id"),
        "structure",
        "",
        "changed",
        False,
    ),
    "another convention": (lambda d: d["facts"].update(convention="another exporter's"), "calls", "", "changed", False),
    "another recipe": (lambda d: d["artifact"]["recipe"].update(quantizer="hqq"), "recipe", "", "changed", False),
    "another constant": (
        lambda d: d["facts"]["constants"]["text_decoder.norm.weight"].update(digest="0" * 16),
        "weights",
        "",
        "changed",
        False,
    ),
    "a wrong constant": (
        lambda d: _checks(d, "weights.tensors")[7].update(verdict="fail"),
        "weights",
        "",
        "worse",
        True,
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_each_kind_of_change_has_its_row(clean: dict[str, Any], name: str) -> None:
    """The row says so, the first line too, and the release fails only beyond the budget."""
    edit, subject, what, change, refused = EDITS[name]
    comparison = compare_reports(clean, _edited(clean, edit))
    row = _row(comparison, subject, what)
    assert row.change == change
    others = {r.change for r in comparison.rows if r is not row}
    assert others <= {"same", "unknown", "changed"}
    assert bool(comparison.refused) is refused
    if change in ("worse", "better", "changed"):
        assert comparison.first_line.startswith(
            f"{change.upper()}: llava_tiny.pte against llava_tiny.pte: {row.subject}"
        )


@pytest.mark.parametrize(
    ("by", "change", "refused"), [(0.005, "same", False), (0.02, "worse", False), (0.05, "worse", True)]
)
def test_figures_without_bands_have_noise_and_budget(
    clean: dict[str, Any], by: float, change: str, refused: bool
) -> None:
    """Two exporters' files have no spread of their own: small changes of KL and agreement say nothing, large ones fail."""
    bare = _edited(clean, lambda d: d["facts"].update(noise={}))
    for metric, sign in (("logits.kl_p90", 1), ("logits.top1_agreement", -1)):
        comparison = compare_reports(bare, _edited(bare, _move("logits.distribution", metric, sign * by)))
        assert _row(comparison, "logits", "KL" if sign > 0 else "top-1").change == change
        assert bool(comparison.refused) is refused
        assert "unknown" not in {row.change for row in comparison.rows}


def test_budget_can_be_given(clean: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is worse within it is said, and passes."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(clean))
    new.write_text(json.dumps(_edited(clean, EDITS["larger file"][0])))
    assert main([str(old), str(new), "--quiet"]) == 1
    summary, data = tmp_path / "summary.md", tmp_path / "comparison.json"
    more = ["--summary", str(summary), "--json", str(data)]
    assert main([str(old), str(new), "--budget", "file_bytes=15", *more]) == 0
    assert "WORSE: llava_tiny.pte against llava_tiny.pte: size, bytes of the file +10.0%" in capsys.readouterr().out
    assert summary.read_text().startswith("### WORSE")
    assert json.loads(data.read_text())["verdict"] == "worse"


@pytest.mark.parametrize("budget", ["speed=3", "file_bytes", "file_bytes=-1", "file_bytes=much"])
def test_unusable_budget_is_refused(report_folder: Path, budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, with the names there are."""
    path = str(report_folder / "report.json")
    assert main([path, path, "--budget", budget]) == 2
    assert "prefill_loops" in capsys.readouterr().err


def test_reports_of_two_checkpoints_are_refused(clean: dict[str, Any]) -> None:
    """Nothing follows from numbers against two references."""
    other = _edited(clean, lambda d: d["checkpoint"].update(sha256="0" * 64))
    with pytest.raises(UsageError, match="two checkpoints"):
        compare_reports(clean, other)
    with pytest.raises(UsageError, match="no facts"):
        compare_reports(_edited(clean, lambda d: d.pop("facts")), clean)


@pytest.mark.parametrize(
    ("old", "new", "more", "change"),
    [
        (1.0, 1.04, False, "same"),
        (1.0, 1.2, False, "worse"),
        (1.0, 1.2, True, "better"),
        (1.0, float("nan"), True, "unknown"),
    ],
)
def test_numbers_are_judged_against_noise(old: float, new: float, more: bool, change: str) -> None:
    """Within it they are the same, and what is no number is no verdict."""
    assert number_row("x", "", old, new, more_is_better=more, noise=0.05, relative=True).change == change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "first_line"),
    [
        (
            ("--quantizer", "hqq"),
            r"WORSE: new\.pte against llava_tiny\.pte: .*; better: weights .* dB in the mean of all",
        ),
        (
            ("--max-seq-len", "1024"),
            r"WORSE: new\.pte against llava_tiny\.pte: size, bytes of the file \+13\.1%; memory, planned",
        ),
    ],
)
def test_real_exports(
    report_folder: Path, tmp_path: Path, flags: tuple[str, ...], first_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """HQQ against affine, 1024 positions against 768: exported, verified and compared by the public commands."""
    assert export(None, tmp_path / "new.pte", *flags) == 0
    capsys.readouterr()
    assert main([str(report_folder / "report.json"), str(tmp_path / "new.pte"), "--quiet"]) == 1
    assert re.match(first_line, capsys.readouterr().out)
