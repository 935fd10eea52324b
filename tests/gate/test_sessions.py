"""Recorded sessions through the whole command: sound ones, and ones in which something was otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.support import EMBEDDED_PTE
from verifier.commands.session import main
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Request
from verifier.golden.records import load_golden
from verifier.measures.own_answers import OwnAnswers
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Array, Bundle
from verifier.sessions import records
from verifier.sessions.hypotheses import SAMPLED
from verifier.sessions.inputs import Subject
from verifier.sessions.judge import judge_session
from verifier.sessions.opening import open_subject
from verifier.sessions.records import SCHEMA, read_session

pytestmark = pytest.mark.xdist_group("sessions")
EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.jsonl"))
PICTURE = EMBEDDED / "images" / "square_0.png"
BEHIND = PROMPT.after_image("Describe the image.")


@cache
def _subject() -> Subject:
    return open_subject(Request(EMBEDDED_PTE))


def _answer(pixels: Array, behind: str = BEHIND) -> str:
    """What the file answers, by our driver, as ExecuTorch's runner feeds text."""
    subject = _subject()
    own = OwnAnswers(subject.caller, subject.family.patches, subject.artifact.max_seq_len)
    before, after = (tuple(subject.by_runner.encode(text)) for text in (PROMPT.before_image, behind))
    own.ask(((subject.by_runner.bos, *before), pixels, after), 24)
    outputs = run_bundle(LocalRunner(), Bundle(EMBEDDED_PTE, tuple(own.script.calls))).outputs
    (ids,) = own.answers(outputs, tuple(subject.tokenizer.ends))
    return subject.tokenizer.decode(list(ids))


def _turn(answer: str, picture: Path = PICTURE, **more: Any) -> dict[str, Any]:
    inputs = [{"text": PROMPT.before_image}, {"picture": str(picture)}, {"text": BEHIND}]
    settings = {"temperature": 0.0, "num_bos": 1, "max_new_tokens": 24}
    return {"reset": True, "inputs": inputs, "settings": settings, "answer": answer} | more


def _judged(folder: Path, *turns: dict[str, Any], **head: str) -> tuple[int, dict[str, Any]]:
    path, found = folder / "session.jsonl", folder / "found.json"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in ({"schema": SCHEMA} | head, *turns)))
    status = main([str(path), "--pte", str(EMBEDDED_PTE), "--json", str(found)])
    data: dict[str, Any] = json.loads(found.read_text())
    return status, data


def test_a_sound_session_is_sound(tmp_path: Path) -> None:
    """By text, and by the golden ids."""
    subject = _subject()
    golden = next(one for one in load_golden(EMBEDDED, subject.checkpoint.sha256).images if one.path == PICTURE)
    answer = _answer(subject.prepared(PICTURE))
    assert answer == golden.text
    status, data = _judged(tmp_path, _turn(answer), _turn(answer) | {"answer": None, "answer_ids": list(golden.ids)})
    assert status == 0
    assert [turn["outcome"] for turn in data["turns"]] == ["sound", "sound"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(one, id=one.stem, marks=[pytest.mark.slow] * (one.stem == "llava_main-python")) for one in EXAMPLES],
)
def test_the_examples_are_of_the_schema_and_sound(path: Path) -> None:
    """`python -m tests.bench.recorded docs/examples` records them again."""
    schema = json.loads(Path(records.__file__).with_name("session.schema.json").read_text())
    for line in path.read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)
    verdict = judge_session(read_session(path), _subject())
    assert (verdict.exit_status, [judged.outcome for judged in verdict.turns]) == (0, ["sound"])


def test_there_is_an_example_of_every_runner_that_records() -> None:
    """ExecuTorch's own, and both `llava_main`."""
    assert [path.stem for path in EXAMPLES] == ["llava_main-cpp", "llava_main-python", "official"]


def test_an_answer_that_was_stopped_is_sound(tmp_path: Path) -> None:
    """Its beginning; an empty one, or no token at all, is no answer."""
    answer = _answer(_subject().prepared(PICTURE))
    status, data = _judged(tmp_path, _turn(answer[:7]), _turn(""), _turn("") | {"answer": None, "answer_ids": []})
    assert status == 2
    assert [turn["outcome"] for turn in data["turns"]] == ["sound", "unexplained", "unexplained"]


def test_a_count_of_the_runner_that_is_not_the_recorded_inputs_is_named(tmp_path: Path) -> None:
    """Something else was fed, whatever the answer; the blank behind the image is a note."""
    status, data = _judged(tmp_path, _turn(_answer(_subject().prepared(PICTURE)), prompt_tokens=690))
    assert status == 1
    assert "the runner counted 690, what was recorded has 683" in data["turns"][0]["causes"][0]
    assert any("a text behind a picture gets other ids" in note for note in data["notes"])


def _bgr(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels[::-1])


@pytest.mark.parametrize(
    ("pixels", "behind", "named"),
    [(_bgr, BEHIND, "pixels in the order BGR"), (lambda given: given, f"{BEHIND} ", "a trailing blank")],
    ids=["BGR", "trailing blank"],
)
def test_the_answer_alone_names_what_was_fed(
    pixels: Callable[[Array], Array], behind: str, named: str, tmp_path: Path
) -> None:
    """The record says that all was as it has to be. Of this picture one app's path makes a size that the program refuses."""
    picture = EMBEDDED / "images" / "odd_337x251.png"
    answer = _answer(pixels(_subject().prepared(picture)), behind)
    status, data = _judged(tmp_path, _turn(answer, picture))
    assert status == 1
    assert any(named in cause for cause in data["turns"][0]["causes"])


def test_what_the_record_says_is_named(tmp_path: Path) -> None:
    """Sampling, another file, and pixels in another order, whatever the answer."""
    subject = _subject()
    made = _bgr(subject.prepared(PICTURE))
    np.save(tmp_path / "fed.npy", made)
    fed = _turn(_answer(made))
    fed["inputs"][1]["pixels"] = "fed.npy"
    sampled = _turn("A cat.")
    sampled["settings"]["temperature"] = 0.8
    status, data = _judged(tmp_path, fed, sampled, program_sha256="0" * 64)
    assert status == 1
    assert "BGR" in data["turns"][0]["causes"][0]
    assert SAMPLED in data["turns"][1]["causes"][0]
    assert data["causes"][0].startswith("another file")


def test_what_nothing_explains_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2."""
    status, data = _judged(tmp_path, _turn("A cat sits on a mat."))
    assert status == 2
    assert data["turns"][0]["outcome"] == "unexplained"
    assert "NOT EXPLAINED: 0 of 1 turns are sound" in capsys.readouterr().out
