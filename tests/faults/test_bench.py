"""The fault bench: it injects, it judges, it can say no; its page is what its tool writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from verifier.checks.registry import CHECKS
from verifier.families.checkpoint import EMBEDDED
from verifier.faults import cli, today
from verifier.faults.bench import Outcome, Subject, _injected, run_faults, sound
from verifier.faults.catalogue import EXCEPTIONS, FAULTS
from verifier.faults.clean import sound_artifacts
from verifier.faults.cli import main
from verifier.faults.document import figures, only_witness, page, save
from verifier.faults.fault import Fault, Inject, Work
from verifier.faults.rows import ROWS
from verifier.measures.evidence import Evidence

DOCS = Path(__file__).parents[2] / "docs"
TINY = {"tiny": Subject(EMBEDDED / "llava_tiny.pte", EMBEDDED)}


def test_catalogue_covers_what_happened() -> None:
    """Enough faults, enough rows, names that are unique, reasons for faults that exist."""
    names = [fault.name for fault in FAULTS]
    assert len(FAULTS) >= 60
    assert len(set(names)) == len(names)
    rows = {row for fault in FAULTS for row in fault.rows}
    assert len(rows) >= 36
    assert rows <= ROWS.keys()
    assert EXCEPTIONS.keys() <= set(names)
    sound = [fault.name for fault in sound_artifacts()]
    assert len(set(sound)) == len(sound) >= 200


def test_quick_faults_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A dozen, each by the family of checks that is to find it."""
    assert main(["--quick"]) == 0
    count = sum(bool(fault.quick) for fault in FAULTS)
    assert (
        f"{count} of {count} faults found, {count} in the right step, {count} in the right place"
        in capsys.readouterr().out
    )


def _run(tmp_path: Path, inject: Callable[[Work], None]) -> tuple[Fault, Outcome]:
    fault = Fault("made-up", "bytes", (), "made up", ("lowering",), "somewhere", inject, quick="structure.signatures")
    (outcome,) = run_faults([fault], TINY, tmp_path, workers=1, quick=True)
    return fault, outcome


def test_fault_that_is_none_is_not_found(tmp_path: Path) -> None:
    """The bench can say no: nothing injected, nothing found."""
    fault, outcome = _run(tmp_path, lambda work: None)
    assert (outcome.status, outcome.problem) == (0, "")
    assert not (outcome.found(fault) or outcome.right_step(fault) or outcome.right_place(fault))


def test_injection_that_fails_is_the_benchs_own_failure(tmp_path: Path) -> None:
    """Neither found nor missed: the command ends with 2."""

    def broken(work: Work) -> None:
        raise ValueError("no such tensor")

    fault, outcome = _run(tmp_path, broken)
    assert "no such tensor" in outcome.problem
    assert not outcome.found(fault)


def test_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also a page from part of a run."""
    assert main(["--only", "no-such-fault"]) == 2
    assert "no fault matches" in capsys.readouterr().err
    assert main(["--quick", "--write", str(tmp_path)]) == 2
    assert "only a whole run can be written" in capsys.readouterr().err


def test_clean_program_that_fails_ends_the_bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2: a gate that says no to what is sound has found nothing."""
    monkeypatch.setattr(cli, "prepare", lambda subject: None)
    first = iter([Outcome("sound-tiny", 1, message="logits.channels: x")])
    monkeypatch.setattr(cli, "run_faults", lambda *given, **named: first)
    assert main(["--only", "one-nibble"]) == 2
    assert "nothing can be learnt from faults" in capsys.readouterr().err


def test_page_tells_what_was_missed(tmp_path: Path) -> None:
    """A fault that was not found stands in its own section, with its reason; false alarms too."""
    missed = [Outcome(fault.name, 0, today=dict.fromkeys(today.NAMES, True)) for fault in FAULTS[:2]]
    save(tmp_path, "faults", missed, 12.0, 2)
    save(
        tmp_path,
        "clean",
        [Outcome("local-blank", 1, check="logits.channels", message="x"), Outcome("local-wide", 0)],
        3.0,
        2,
    )
    text = (tmp_path / "faults.md").read_text()
    assert "Of **2** faults injected one at a time the gate finds **0**" in text
    assert text.count("**not found**") == 2
    assert f"*{FAULTS[0].text}* - " in text
    assert "1 of 2 sound artifacts" in text
    assert "**local-blank**: logits.channels x" in text


def test_page_is_what_the_tool_writes() -> None:
    """docs/faults.md and the README's figures are those of the last whole run, and nobody's hand was in them."""
    data = json.loads((DOCS / "faults.json").read_text())
    assert (DOCS / "faults.md").read_text() == page(data)
    assert f"<!-- faults -->\n{figures(data)}<!-- /faults -->" in (DOCS.parent / "README.md").read_text()
    assert {outcome["fault"] for outcome in data["faults"]["outcomes"]} == {fault.name for fault in FAULTS}


@pytest.mark.xdist_group("faults")
def test_todays_checks_pass_what_is_sound_and_see_what_is_gross(gathered: Evidence) -> None:
    """Their figures are fair: all pass on the clean program; garbage fails all but the count of tokens."""
    assert today.passes(gathered) == dict.fromkeys(today.NAMES, True)
    rng = np.random.default_rng(0)
    cases = tuple(replace(c, logits=rng.standard_normal(np.shape(c.logits)).astype(np.float32)) for c in gathered.cases)
    free = {name: np.roll(logits, 7, -1) for name, logits in gathered.runtime.free.items() if logits is not None}
    garbage = replace(gathered, cases=cases, runtime=replace(gathered.runtime, free=free))
    assert today.passes(garbage) == {"caption": False, "tokens": True, "logits": False, "top1": False}
    silent = replace(gathered.runtime, free=dict.fromkeys(free))
    nothing = replace(gathered, cases=tuple(replace(c, logits=None) for c in cases), runtime=silent)
    assert today.passes(nothing) == dict.fromkeys(today.NAMES, False)


def test_every_check_has_a_fault_of_its_own_or_says_why_not() -> None:
    """By the published run in which every check was made for every fault: one that only this check sees, or a reason; never both."""
    run = json.loads((DOCS / "faults.json").read_text())["witnesses"]
    alone = only_witness(Outcome.read(saved) for saved in run["outcomes"])
    assert len(alone) >= 10
    assert [check.id for check in CHECKS if bool(alone.get(check.id)) == bool(check.overlap)] == []


def _misses(work: Work) -> None:
    raise StopIteration


@pytest.mark.parametrize("inject", [_misses, lambda work: None], ids=["has no place", "changes nothing"])
def test_fault_without_a_place_in_a_foreign_program_is_no_outcome(inject: Inject, tmp_path: Path) -> None:
    """It is named and not counted; in a program of our own it is a failure of the bench."""
    fault = Fault("made-up", "bytes", (), "made up", ("lowering",), "", inject)
    subject = replace(TINY["tiny"], foreign=True)
    (tmp_path / "foreign").mkdir()
    outcome = _injected(fault, subject, tmp_path / "foreign", quick=True, whole=False)
    assert outcome.no_place and not outcome.found(fault)
    if inject is _misses:
        with pytest.raises(StopIteration):
            _injected(fault, replace(subject, foreign=False), tmp_path, quick=True, whole=False)


def test_clean_program_of_another_exporter_is_judged(tmp_path: Path) -> None:
    """The control of a run changes nothing, on purpose."""
    control = replace(sound("tiny"), quick="structure.signatures")
    outcome = _injected(control, replace(TINY["tiny"], foreign=True), tmp_path, quick=True, whole=False)
    assert (outcome.no_place, outcome.found(control)) == ("", True)
