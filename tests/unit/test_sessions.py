"""Recorded sessions are read strictly: what is wrong is named by line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from verifier.core.errors import SessionError
from verifier.sessions import records
from verifier.sessions.records import SCHEMA, read_session

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
        ([HEAD, TURN | {"inputs": [{"text": "a", "ids": [1]}]}], "one of text, ids"),
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
