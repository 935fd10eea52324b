"""Answers in the user's cache: found again, bounded, and nothing in a file is trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from verifier.core.errors import UsageError
from verifier.golden import kept
from verifier.golden.kept import KeptAnswers, key_of

KEY = key_of({"checkpoint": "a", "room": 4})
IDS = (7, 0, 9, 2)


def _read(answers: KeptAnswers, key: str = KEY) -> tuple[int, ...] | None:
    return answers.read(key, vocabulary=10, ends=(2,), room=6)


@pytest.fixture
def answers(tmp_path: Path) -> KeptAnswers:
    """A folder with one answer."""
    made = KeptAnswers(tmp_path / "answers")
    made.write(KEY, IDS)
    return made


def test_key_does_not_depend_on_the_order() -> None:
    """The same dependencies are the same key, others are another."""
    assert key_of({"room": 4, "checkpoint": "a"}) == KEY
    assert key_of({"room": 5, "checkpoint": "a"}) != KEY


def test_answer_is_found_by_its_key(answers: KeptAnswers) -> None:
    """Until it is removed; no file beside it is left."""
    assert _read(answers) == IDS
    assert _read(answers, "0" * 64) is None
    assert [path.name for path in answers.folder.iterdir()] == [f"{KEY}.json"]
    answers.remove(KEY)
    assert _read(answers) is None


def _record(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _another_file(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-20]),
    "pickle": lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n."),
    "no object": lambda p: p.write_text("[]"),
    "deep": lambda p: p.write_text("[" * 50_000),
    "large": lambda p: p.write_text(p.read_text() + " " * kept.ENTRY_BYTES),
    "another schema": lambda p: _record(p, schema="verifier.answer/0"),
    "another key": lambda p: _record(p, key="0" * 64),
    "another digest": lambda p: _record(p, sha256="0" * 64),
    "changed ids": lambda p: _record(p, ids=[7, 0, 8, 2]),
    "a link": _another_file,
    "a pipe": _pipe,
    "a folder": _folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_none(answers: KeptAnswers, damage: str) -> None:
    """Whatever lies there, at once, and a new answer takes its place where a file can."""
    path = answers.folder / f"{KEY}.json"
    DAMAGE[damage](path)
    assert _read(answers) is None
    if damage != "a folder":
        answers.write(KEY, IDS)
        assert _read(answers) == IDS


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [10, 2],
        [-1, 2],
        [True, 2],
        [1.0, 2],
        ["1", 2],
        [float("nan")],
        [1, 1, 1],
        [1, 2, 1, 2],
        [1] * 7,
        {"0": 2},
        None,
    ],
    ids=str,
)
def test_ids_that_are_no_answer_are_none(answers: KeptAnswers, ids: object) -> None:
    """A correct digest does not help: tokens of the vocabulary, up to the first that ends an answer, or as many as there is room for."""
    _record(answers.folder / f"{KEY}.json", ids=ids, sha256=kept._digest(KEY, ids))
    assert _read(answers) is None


def test_oldest_answers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used last stay, as many as are allowed."""
    monkeypatch.setattr(kept, "ENTRIES", 3)
    answers = KeptAnswers(tmp_path)
    keys = [key_of({"number": number}) for number in range(5)]
    for number, key in enumerate(keys[:3]):
        answers.write(key, IDS)
        os.utime(tmp_path / f"{key}.json", (number, number))
    assert _read(answers, keys[0]) == IDS  # used: now the newest
    answers.write(keys[3], IDS)
    assert {path.stem for path in tmp_path.glob("*.json")} == {keys[0], keys[2], keys[3]}


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The caller says so in the report; reading finds nothing, and nobody waits for a lock."""
    (tmp_path / "file").touch()
    answers = KeptAnswers(tmp_path / "file" / "answers")
    with answers.alone(KEY):
        assert _read(answers) is None
    with pytest.raises(UsageError, match="cannot be written"):
        answers.write(KEY, IDS)
