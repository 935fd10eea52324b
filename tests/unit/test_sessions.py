"""Recorded sessions are read strictly: what is wrong is named by line and field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from verifier.core.errors import SessionError
from verifier.sessions import records
from verifier.sessions.inputs import OWN, path_of, with_text
from verifier.sessions.records import SCHEMA, Fed, read_session
from verifier.sessions.session_file import SessionFile

HEAD = {"schema": SCHEMA}
TURN = {"reset": True, "inputs": [{"text": "Hello"}], "answer": "A cat."}


def _written(folder: Path, *lines: Any) -> Path:
    path = folder / "session.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_session_is_read(tmp_path: Path) -> None:
    """Pixels beside it, ids, settings; what is not recorded is None."""
    np.save(tmp_path / "pixels.npy", np.zeros((3, 4, 6), np.uint8))
    turn = {
        "inputs": [{"ids": [1, 2]}, {"picture": "a.jpg", "pixels": "pixels.npy"}],
        "settings": {"temperature": 0},
        "answer_ids": [5, 2],
    }
    session = read_session(_written(tmp_path, HEAD | {"device": "Pixel 8"}, TURN, turn))
    assert (session.device, session.runtime, len(session.turns)) == ("Pixel 8", "", 2)
    one, other = session.turns
    assert (one.reset, one.inputs[0].text, one.answer, one.settings.temperature) == (True, "Hello", "A cat.", None)
    assert (other.line, other.reset, other.inputs[0].ids, other.answer_ids) == (3, False, (1, 2), (5, 2))
    assert other.settings.temperature == 0.0
    assert other.inputs[1].picture == tmp_path / "a.jpg"
    assert other.inputs[1].pixels is not None
    assert other.inputs[1].pixels.shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "not a recorded session"),
        ([TURN], "not a recorded session"),
        ([HEAD], "no turn to judge"),
        ([HEAD, "{"], "line 2"),
        ([HEAD, [1]], "no object"),
        ([HEAD, TURN | {"inputs": []}], "field inputs"),
        ([HEAD, TURN | {"inputs": [{"text": "a", "pixels": "a.npy"}]}], "a text, its ids or both"),
        ([HEAD, TURN | {"inputs": [{}]}], "a text, its ids or both"),
        ([HEAD, TURN | {"inputs": [{"pixels": "none.npy"}]}], "field pixels"),
        ([HEAD, TURN | {"inputs": [{"ids": [-1]}]}], "from 0 on"),
        ([HEAD, TURN | {"settings": {"temperature": "hot"}}], "field temperature"),
        ([HEAD, '{"inputs": [{"text": "a"}], "answer": "b", "settings": {"temperature": NaN}}'], "field temperature"),
        ([HEAD, {"inputs": [{"text": "a"}]}], "answer, answer_ids or error"),
        ([HEAD, TURN | {"mood": 1}], "another name"),
    ],
)
def test_what_is_wrong_is_named(lines: list[Any], said: str, tmp_path: Path) -> None:
    """With line and field."""
    with pytest.raises(SessionError) as refused:
        read_session(_written(tmp_path, *lines))
    assert said in str(refused.value)


def test_pixels_of_another_form_are_refused(tmp_path: Path) -> None:
    """Height, width and channels in another order."""
    np.save(tmp_path / "pixels.npy", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(SessionError, match="uint8 \\[4, 6, 3\\]"):
        read_session(_written(tmp_path, HEAD, TURN | {"inputs": [{"pixels": "pixels.npy"}]}))


def test_a_text_may_stand_beside_its_ids(tmp_path: Path) -> None:
    """Another text in its place has no ids; a line separator of Unicode ends no line."""
    turn = {"inputs": [{"text": "a\u2028b", "ids": [7, 8]}], "answer": "c"}
    (fed,) = read_session(_written(tmp_path, HEAD, json.dumps(turn, ensure_ascii=False))).turns[0].inputs
    assert (fed.text, fed.ids) == ("a\u2028b", (7, 8))
    assert with_text([fed], 0, "b") == (Fed("b"),)


def test_pixels_of_another_decoder_are_of_the_same_path() -> None:
    """What JPEG decoders differ by; twice that is no known path, and an exact one comes first."""
    rng = np.random.default_rng(0)
    made = rng.integers(8, 247, (3, 40, 60)).astype(np.uint8)
    steps = rng.choice([-4, -1, 0, 1, 4], p=[0.01, 0.1, 0.78, 0.1, 0.01], size=made.shape)
    assert path_of((made + steps).astype(np.uint8), {OWN: made}) == OWN
    assert path_of((made + 2 * steps).astype(np.uint8), {OWN: made}) == ""
    other = (made + steps).astype(np.uint8)
    assert path_of(other, {OWN: made, "another": other}) == "another"


def test_a_session_grows_by_whole_lines(tmp_path: Path) -> None:
    """The head once, before the first one; the same pixels once."""
    session = SessionFile(tmp_path / "a.jsonl", HEAD)
    for _ in range(2):
        session.check()
        name = session.save_pixels(np.zeros((3, 2, 2), np.uint8))
        session.append(TURN | {"inputs": [{"pixels": name}]})
    assert [json.loads(line).get("schema") for line in session.path.read_text().splitlines()] == [SCHEMA, None, None]
    assert len(read_session(session.path).turns) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(HEAD | {"runtime": "another"}) + "\n", "another runtime, program or tokenizer"),
        ("no JSON\n", "another runtime, program or tokenizer"),
        (json.dumps(HEAD) + "\n{", "in the middle of a line"),
    ],
)
def test_a_file_that_is_no_such_session_is_not_appended_to(content: str, said: str, tmp_path: Path) -> None:
    """It stays as it is."""
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SessionError, match=said):
        SessionFile(tmp_path / "a.jsonl", HEAD).check()
    assert (tmp_path / "a.jsonl").read_text() == content


@pytest.mark.parametrize("place", [".", "none/a.jsonl"])
def test_a_path_that_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    """A folder, and a file in a folder that is not there."""
    with pytest.raises(SessionError, match="cannot be written") as refused:
        SessionFile(tmp_path / place, HEAD).check()
    assert (refused.value.got is not None, refused.value.fix) == (True, "give --record another path")


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is as it was."""
    session = SessionFile(tmp_path / "a.jsonl", HEAD)
    session.append(TURN)
    before, write = session.path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:10]))
    with pytest.raises(SessionError, match="the disk is full"):
        session.append(TURN)
    assert session.path.read_bytes() == before


def test_the_schema_says_what_the_reader_reads() -> None:
    """The same fields."""
    schema = json.loads(Path(records.__file__).with_name("session.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for line in (HEAD, TURN):
        jsonschema.validate(line, schema)
    parts = schema["$defs"]
    assert set(parts["head"]["properties"]) == records._HEAD
    assert set(parts["turn"]["properties"]) == records._TURN
    assert set(parts["turn"]["properties"]["settings"]["properties"]) == records._SETTINGS
