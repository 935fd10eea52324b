"""`llava_main --record`, in C++ and in Python: sessions that `python -m verifier.session` reads and finds sound."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.support import EMBEDDED_PTE, UPSTREAM_PTE
from verifier.families.checkpoint import EMBEDDED
from verifier.gather.opening import Request
from verifier.runner.native import SOURCE, NativeRunner
from verifier.sessions import records
from verifier.sessions.inputs import Subject
from verifier.sessions.judge import NO_ROOM, judge_session
from verifier.sessions.opening import open_subject
from verifier.sessions.records import read_session

pytestmark = pytest.mark.xdist_group("runner")
PICTURE = EMBEDDED / "images" / "odd_337x251.png"
ODD = b'"\\ \x01\t \xe6\x97 \xf0\x9f\x99\x82 \xff\xed\xa0\x80\xc3\xa9\x7f \xe2\x80\xa8 \xf4\x90\x80\x80 ASSISTANT:'
"""Quotes, control characters, cut off and impossible UTF-8, a surrogate, a line separator."""


def _ask(command: list[str], record: Path, **flags: Any) -> subprocess.CompletedProcess[bytes]:
    before = flags.pop("before", None)
    given = {"model_path": EMBEDDED_PTE, "tokenizer_path": EMBEDDED / "tokenizer.model", "image_path": PICTURE}
    words = [
        f"--{name}={value}".encode() for name, value in (given | {"record": record} | flags).items() if name != "odd"
    ]
    words += [b"--prompt=" + flags["odd"]] if "odd" in flags else []
    return subprocess.run(
        [*command, *words], capture_output=True, check=False, timeout=120, cwd=record.parent.parent, preexec_fn=before
    )


@cache
def _subject() -> Subject:
    return open_subject(Request(EMBEDDED_PTE))


def _python() -> list[str]:
    return [sys.executable, "-m", "verifier.runner.llava_main"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


@pytest.fixture(scope="module")
def recorded(native: NativeRunner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A session of each: one answer to an odd prompt, in C++ also one to a JPEG."""
    made = {}
    for kind, command in (("native", [str(native.binary)]), ("python", _python())):
        path = made[kind] = tmp_path_factory.mktemp(kind) / "session.jsonl"
        done = _ask(command, path, odd=ODD, seq_len=750)
        assert done.returncode == 0, done.stderr
    assert (
        _ask([str(native.binary)], made["native"], image_path=EMBEDDED / "images" / "photo_flower.jpg").returncode == 0
    )
    return made


def test_both_record_the_same(recorded: dict[str, Path]) -> None:
    """All but the runtime; text that is no UTF-8 with the substitutes that Python has."""
    (head, turn, _), (other_head, other_turn) = _lines(recorded["native"]), _lines(recorded["python"])
    assert turn == other_turn
    assert turn["inputs"][2]["text"] == ODD.decode(errors="replace")
    assert head | {"runtime": ""} == other_head | {"runtime": ""}
    assert head["runtime"] != other_head["runtime"]


@pytest.mark.parametrize("kind", ["native", "python"])
def test_the_lines_are_of_the_schema(kind: str, recorded: dict[str, Path]) -> None:
    """And the pixels, of this PNG those of `image_util`, lie beside them."""
    schema = json.loads(Path(records.__file__).with_name("session.schema.json").read_text())
    head, *turns = _lines(recorded[kind])
    for line in (head, *turns):
        jsonschema.validate(line, schema)
    folder = recorded[kind].parent
    picture = turns[0]["inputs"][1]
    assert (folder / picture["picture"]).resolve() == PICTURE.resolve()
    assert np.load(folder / picture["pixels"]).shape == (3, 250, 336)


def test_both_are_sound(recorded: dict[str, Path]) -> None:
    """A JPEG, too, whose pixels another decoder made."""
    verdicts = {kind: judge_session(read_session(path), _subject()) for kind, path in recorded.items()}
    assert {kind: verdict.exit_status for kind, verdict in verdicts.items()} == {"native": 0, "python": 0}
    assert len(verdicts["native"].turns) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_prompt_that_has_no_room_is_recorded_as_an_error(kind: str, native: NativeRunner, tmp_path: Path) -> None:
    """And judged so."""
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "session.jsonl"
    done = _ask([str(native.binary)] if kind == "native" else _python(), path, prompt="A cat." * 60)
    assert done.returncode == 2
    turn = _lines(path)[1]
    assert "768" in turn["error"]
    assert "answer" not in turn
    verdict = judge_session(read_session(path), _subject())
    assert (verdict.exit_status, verdict.turns[0].causes) == (1, (NO_ROOM,))


@pytest.mark.slow
def test_an_answer_at_the_last_position_is_sound(native: NativeRunner, tmp_path: Path) -> None:
    """The prompt takes every position that may be used; one token is drawn behind it."""
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "session.jsonl"
    for length in (670, 672):
        assert _ask([str(native.binary)], path, seq_len=length, prompt="ASSISTANT:").returncode == 0
    assert [len(turn["answer_ids"]) for turn in _lines(path)[1:]] == [1, 3]
    assert judge_session(read_session(path), _subject()).exit_status == 0


@pytest.mark.parametrize("kind", ["native", pytest.param("python", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["x", "none/session.jsonl", "x/whose.jsonl", "x/half.jsonl"])
def test_a_path_that_cannot_be_appended_to_is_refused(
    kind: str, place: str, native: NativeRunner, recorded: dict[str, Path], tmp_path: Path
) -> None:
    """Before anything runs: a folder, one that is not there, another program's session, one that was cut off."""
    (tmp_path / "x").mkdir()
    whole = recorded[kind].read_bytes()
    (tmp_path / "x" / "whose.jsonl").write_bytes(whole)
    (tmp_path / "x" / "half.jsonl").write_bytes(whole[:-9])
    command = _python() if kind == "python" else [str(native.binary)]
    pte = UPSTREAM_PTE if "whose" in place else EMBEDDED_PTE
    done = _ask(command, tmp_path / place, model_path=pte, image_path="none.png")
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert b"no such image" not in done.stderr
    for word in (b"the session", b"got: ", b"to fix: "):
        assert word in done.stderr
    assert (tmp_path / "x" / "whose.jsonl").read_bytes() == whole


@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_leaves_the_session_as_it_was(
    room: int, native: NativeRunner, recorded: dict[str, Path], tmp_path: Path
) -> None:
    """Neither pixels nor a part of a line are left; the answer is printed all the same."""
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "session.jsonl"
    path.write_bytes(recorded["native"].read_bytes())
    before = path.read_bytes()
    picture = recorded["native"].parent / _lines(path)[1]["inputs"][1]["pixels"]
    if room:
        (tmp_path / "x" / picture.name).write_bytes(picture.read_bytes())

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, len(before) + room))

    done = _ask([str(native.binary)], path, prompt="ASSISTANT:", before=limited)
    assert (done.returncode, done.stdout[:12]) == (2, b"ASSISTANT: A"), done.stderr
    assert b"the session cannot be written" in done.stderr
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == (2 if room else 1)


def test_what_gives_no_answer_is_not_recorded(native: NativeRunner, tmp_path: Path) -> None:
    """`--save_image` and `--record` exclude each other."""
    (tmp_path / "x").mkdir()
    done = _ask([str(native.binary)], tmp_path / "x" / "session.jsonl", save_image=tmp_path / "a.npy")
    assert (done.returncode, b"leave one of them out" in done.stderr) == (2, True)
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.slow
def test_strings_and_hashes_are_pythons(tmp_path: Path) -> None:
    """Of 20,000 texts of bytes that begin, go on and break characters, and of 256 lengths, under sanitizers."""
    compiler, source, program = shutil.which("g++"), SOURCE / "src", tmp_path / "record_text"
    assert compiler is not None
    words = [compiler, "-std=c++17", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", source]
    words += ["-o", program, Path(__file__).with_name("record_text.cpp"), source / "json.cpp", source / "sha256.cpp"]
    subprocess.run([str(word) for word in words], check=True)
    rng, edges = (
        random.Random(0),
        bytes.fromhex("00 09 1f 22 5c 41 7e 7f 80 8f 90 9f a0 bf c1 c2 df e0 e2 ed ef f0 f4 f5"),
    )
    texts = [bytes(rng.choices(edges, k=rng.randint(1, 12))) for _ in range(20_000)]
    texts += [rng.randbytes(length) for length in range(256)]
    given = b"".join(bytes([len(text)]) + text for text in texts)
    said = subprocess.run([str(program)], input=given, capture_output=True, check=True).stdout.decode("ascii")
    lines = said.split("\n")[:-1]
    assert lines[::2] == [json.dumps(text.decode(errors="replace")) for text in texts]
    assert lines[1::2] == [hashlib.sha256(text).hexdigest() for text in texts]
