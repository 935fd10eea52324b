"""Budgets: recorded from a clean program, kept by the same program, exceeded by one that grew or became slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import verify
from verifier.commands.budgets import MARGINS, main
from verifier.faults.surgery import program_of, write_scalar
from verifier.measures.paired_calls import PairedCalls

pytestmark = pytest.mark.xdist_group("budgets")
FIGURES = ("budget.file", "budget.memory", "budget.peak", "budget.prefill", "budget.decode")


@pytest.fixture(scope="module")
def recorded(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro model with a budget."""
    model = Path(shutil.copytree(micro_model, tmp_path_factory.mktemp("budgets") / "model"))
    words = ["--model", str(model), "--runs", "1", "--reason", "for this test"]
    assert main([str(model / "model.pte"), *words]) == 0
    # two processes on two busy cores: a test must not depend on time, and what is to be found is far above this
    path = model / "budgets.json"
    text = json.loads(path.read_text())
    (release,) = text["releases"].values()
    for name in ("prefill_loops", "decode_loops"):
        release["targets"]["local"][name]["allowed"] *= 3
    path.write_text(json.dumps(text))
    return model


def _judged(pte: Path, model: Path, checks: str = "budget.*") -> dict[str, dict[str, str]]:
    report = pte.with_suffix(".report.json")
    verify(pte, "--model", str(model), "--checks", checks, "--json", str(report))
    return {check["id"]: check for check in json.loads(report.read_text())["checks"]}


def test_recorded_program_keeps_its_budget(recorded: Path) -> None:
    """All five figures are checked and pass; what is allowed is what was measured and a margin."""
    judged = _judged(recorded / "model.pte", recorded)
    assert tuple(judged) == FIGURES
    assert {check["verdict"] for check in judged.values()} == {"pass"}
    (release,) = json.loads((recorded / "budgets.json").read_text())["releases"].values()
    figure = release["file"]["file_bytes"]
    assert figure["measured"] == (recorded / "model.pte").stat().st_size
    assert figure["allowed"] == pytest.approx(figure["measured"] * MARGINS["file_bytes"], rel=1e-3)


def test_without_a_record_nothing_is_checked(micro_model: Path, tmp_path: Path) -> None:
    """Budgets are the owner's; nor is a figure checked on a target that it was not recorded for."""
    pte = shutil.copy(micro_model / "model.pte", tmp_path)
    assert not [
        id for id in _judged(Path(pte), micro_model, "structure.signatures,budget.*") if id.startswith("budget")
    ]


def test_larger_file_and_plan_are_named(recorded: Path, tmp_path: Path) -> None:
    """A constant stored twice; an arena for more than was planned."""
    pte = Path(shutil.copy(recorded / "model.pte", tmp_path / "large.pte"))
    flat = program_of(pte)
    plan = next(plan for plan in flat.root.execution_plan if plan.name == "text_decoder")
    place = flat.items(plan, "ExecutionPlan", "non_const_buffer_sizes") + 8
    write_scalar(pte, (place, "q"), 3 * plan.non_const_buffer_sizes[1])
    with pte.open("ab") as file:
        file.write(bytes(pte.stat().st_size // 10))
    judged = _judged(pte, recorded, "budget.file,budget.memory")
    assert {check["verdict"] for check in judged.values()} == {"fail"}
    assert "+10% against the recorded" in judged["budget.file"]["message"]
    assert "exported for more positions" in judged["budget.memory"]["message"]


def test_slow_use_is_named(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a cache: for every token all that came before is fed again, 700 tokens here."""
    feed = PairedCalls.feed

    def all_again(self: PairedCalls, embeddings: NDArray[np.float32], start: int = 0, **named: bool) -> int:
        return feed(self, np.resize(embeddings, (700, embeddings.shape[1])) if start else embeddings, 0, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(PairedCalls, "feed", all_again)
    assert (
        main([str(recorded / "model.pte"), "--model", str(recorded), "--runs", "0", "--reason", "no run at all"]) == 2
    )
    judged = _judged(recorded / "model.pte", recorded, "budget.decode")
    assert judged["budget.decode"]["verdict"] == "fail"


def test_program_that_fails_has_no_speed(recorded: Path, tmp_path: Path) -> None:
    """The check fails and says what the runtime said; nothing is recorded of such a program."""
    pte = Path(shutil.copy(recorded / "model.pte", tmp_path / "dead.pte"))
    flat = program_of(pte)
    plan = next(plan for plan in flat.root.execution_plan if plan.name == "text_decoder")
    place = flat.items(plan, "ExecutionPlan", "non_const_buffer_sizes") + 8
    write_scalar(pte, (place, "q"), 64)
    judged = _judged(pte, recorded, "budget.decode")
    assert judged["budget.decode"]["verdict"] == "fail"
    assert "could not be measured: " in judged["budget.decode"]["message"]
    before = (recorded / "budgets.json").read_bytes()
    assert main([str(pte), "--model", str(recorded), "--runs", "1", "--reason", "of a dead one"]) == 2
    assert (recorded / "budgets.json").read_bytes() == before


@pytest.mark.parametrize("words", [("--runs", "0", "--reason", "no run at all"), ("--reason", "because")])
def test_record_without_runs_or_reason_is_refused(recorded: Path, words: tuple[str, ...]) -> None:
    """Exit 2, and what was recorded stays."""
    before = (recorded / "budgets.json").read_bytes()
    assert main([str(recorded / "model.pte"), "--model", str(recorded), *words]) == 2
    assert (recorded / "budgets.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", '{"schema": "verifier.budgets/1"}', '{"schema": "other"}'])
def test_unreadable_record_is_refused(
    micro_model: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2: a gate that forgot its budget would be none."""
    model = Path(shutil.copytree(micro_model, tmp_path / "model"))
    (model / "budgets.json").write_text(text)
    assert verify(model / "model.pte", "--model", str(model), "--checks", "structure.*") == 2
    assert "budgets.json" in capsys.readouterr().err
