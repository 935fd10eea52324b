"""Goldens are shown, added and updated with a reason; never in CI, never for another checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verifier.commands.golden import main
from verifier.families.answering import greedy_answer, load_sample
from verifier.families.checkpoint import EMBEDDED, Checkpoint
from verifier.families.llava.definition import build_definition
from verifier.families.registry import open_family
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import load_expectation, load_golden


@pytest.fixture
def model(micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the micro model with its golden answers."""
    monkeypatch.delenv("CI", raising=False)
    return Path(shutil.copytree(micro_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.pte")))


def _history(folder: Path) -> list[str]:
    return [entry["reason"] for entry in json.loads((folder / "golden.json").read_text())["history"]]


def test_added_image_is_answered_and_reasoned(model: Path, micro: Checkpoint) -> None:
    """The image is copied, answered in fp32, and the reason is kept; a second one of its name is refused."""
    image = str(EMBEDDED / "images" / "tall_0.png")
    arguments = ["add", image, "--model", str(model), "--reason", "a tall image was missing"]
    assert main(arguments) == 0
    golden = load_golden(model, micro.sha256)
    assert [one.name for one in golden.images][-1] == "tall_0"
    assert golden.images[-1].path.read_bytes() == Path(image).read_bytes()
    assert _history(model)[-1] == "a tall image was missing"
    before = (model / "golden.json").read_bytes()
    assert main(arguments) == 2
    assert (model / "golden.json").read_bytes() == before


def test_draft_saves_passes_and_changes_nothing(micro: Checkpoint) -> None:
    """Right, wrong, too long or none: the same ids, and margins to rounding; a right one takes a single pass."""
    definition = build_definition(micro)
    tokenizer = Tokenizer(micro.directory)
    golden = load_golden(micro.directory, micro.sha256).images[0]
    sample = load_sample(golden, tokenizer, open_family(micro))
    room = 6
    ids, margins = greedy_answer(definition, sample, ends=(tokenizer.eos_id,), room=room)
    passes: list[int] = []
    handle = definition.decoder.layers[0].register_forward_hook(lambda *_: passes.append(1))
    for draft, expected in ((ids, 1), ((*ids[:2], 5, *ids[3:]), 2), ((*ids, 5, 5), 1), ((5,), room)):
        passes.clear()
        drafted = greedy_answer(definition, sample, ends=(tokenizer.eos_id,), room=room, draft=draft)
        assert drafted[0] == ids
        assert drafted[1] == pytest.approx(margins, abs=1e-4)
        assert len(passes) == expected
    handle.remove()


def test_question_that_does_not_fit_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with both figures; nothing is written."""
    before = (model / "golden.json").read_bytes()
    words = ["add", str(EMBEDDED / "images" / "tall_0.png"), "--model", str(model), "--reason", "a long question"]
    assert main([*words, "--question", "What is it? " * 300]) == 2
    assert "expected: at most 768" in capsys.readouterr().err
    assert (model / "golden.json").read_bytes() == before


def test_program_proposes_the_answer(
    model: Path, micro_model: Path, micro: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--draft PTE` changes no golden; a file that is no program is refused, and nothing is written."""
    before = load_golden(model, micro.sha256).images
    words = ["update", before[0].name, "--model", str(model), "--reason", "with a draft"]
    assert main([*words, "--draft", str(micro_model / "model.pte")]) == 0
    assert load_golden(model, micro.sha256).images[0].ids == before[0].ids
    saved = (model / "golden.json").read_bytes()
    assert main([*words, "--draft", str(model / "config.json")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert (model / "golden.json").read_bytes() == saved


def test_update_says_what_changed(model: Path, micro: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """A spoilt answer is replaced; the others stay as they are; the reason is added to those before."""
    path = model / "golden.json"
    text = json.loads(path.read_text())
    name = text["images"][0]["name"]
    right = text["images"][0]["ids"]
    text["images"][0]["ids"] = [5] * len(right)
    path.write_text(json.dumps(text))
    assert main(["update", name, "--model", str(model), "--reason", "the answer was spoilt"]) == 0
    assert list(load_golden(model, micro.sha256).images[0].ids) == right
    assert " -> " in capsys.readouterr().out
    assert len(_history(model)) == 2
    assert main(["update", "--model", str(model), "--reason", "all of them again"]) == 0
    assert capsys.readouterr().out.count("as before") == len(text["images"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["update", "--reason", "x y"], "not changed in CI"),
        (["update", "nobody", "--reason", "x y"], "no such golden image"),
        (["update", "--reason", "x"], "the reason says nothing"),
        (["add", "missing.png", "--reason", "x y"], "no such image"),
    ],
)
def test_bad_changes_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Exit status 2, and the file as it was."""
    if "CI" in said:
        monkeypatch.setenv("CI", "true")
    before = (model / "golden.json").read_bytes()
    assert main([*arguments, "--model", str(model)]) == 2
    assert said in capsys.readouterr().err
    assert (model / "golden.json").read_bytes() == before


def test_golden_of_another_checkpoint_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown or added to, it must belong to the weights beside it."""
    path = model / "golden.json"
    text = json.loads(path.read_text()) | {"checkpoint_sha256": "0" * 64}
    path.write_text(json.dumps(text))
    assert main(["show", "--model", str(model)]) == 2
    image = str(EMBEDDED / "images" / "tall_0.png")
    assert main(["add", image, "--model", str(model), "--reason", "x y"]) == 2
    assert capsys.readouterr().err.count("belongs to another checkpoint") == 2


def test_show_is_a_command() -> None:
    """`python -m verifier.golden show` lists all images and why."""
    done = subprocess.run([sys.executable, "-m", "verifier.golden", "show"], capture_output=True, text=True, check=True)
    assert "photo_coffee" in done.stdout
    assert "least margin" in done.stdout


def test_published_answer_is_found_by_the_checkpoints_name() -> None:
    """The seed's expectation for the real checkpoint, by hub id or folder; none for others."""
    for name in ("llava-hf/llava-1.5-7b-hf", "/models/llava-1.5-7b-hf"):
        found = load_expectation(name)
        assert found is not None
        assert found.begins_with.startswith("image captures a basketball game")
        assert (found.prompt, found.seq_len) == ("ASSISTANT:", 768)
    assert load_expectation(None) is load_expectation("llava_tiny") is load_expectation("..") is None
