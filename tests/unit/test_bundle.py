"""Bundles survive the disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from verifier.core.errors import RunnerError
from verifier.runner import constants
from verifier.runner.bundle import load_bundle, recorded_hash, save_bundle
from verifier.runner.protocol import ArgmaxOf, Bundle, Call, OutputOf, Part, Result, TraceRequest
from verifier.runner.result import load_result, save_fields, save_result


@pytest.fixture(autouse=True)
def program(tmp_path: Path) -> Path:
    """A program of four bytes."""
    (tmp_path / "x.pte").write_bytes(b"ET12")
    return tmp_path / "x.pte"


def test_bundle_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    """Arrays, references, flags."""
    calls = (Call("a", (np.arange(6).reshape(2, 3),)), Call("b", (OutputOf(0), np.float32([1.5])), keep=False))
    save_bundle(Bundle(tmp_path / "x.pte", calls, threads=2), tmp_path)
    back = load_bundle(tmp_path)
    assert (back.pte.name, back.threads, [c.method for c in back.calls], back.calls[1].keep) == (
        "x.pte",
        2,
        ["a", "b"],
        False,
    )
    np.testing.assert_array_equal(np.asarray(back.calls[0].inputs[0]), np.arange(6).reshape(2, 3))
    assert back.calls[1].inputs[0] == OutputOf(0)


def test_references_and_parts_come_back_from_disk(tmp_path: Path) -> None:
    """Other outputs, greedy tokens, instances, parts of caches, last rows."""
    calls = (
        Call("a", (np.zeros(2),), instance=1, further=(Part(3, 1, 48),)),
        Call("b", (OutputOf(0, output=2), ArgmaxOf(0)), may_fail=True, rows="last"),
    )
    save_bundle(Bundle(tmp_path / "x.pte", calls), tmp_path)
    first, second = load_bundle(tmp_path).calls
    assert (first.instance, first.further, first.rows, second.rows) == (1, (Part(3, 1, 48),), "all", "last")
    assert (second.inputs, second.may_fail) == ((OutputOf(0, output=2), ArgmaxOf(0)), True)


def test_bundle_may_not_use_an_output_before_it_exists(tmp_path: Path) -> None:
    """References go backwards only."""
    with pytest.raises(RunnerError, match="does not exist yet"):
        save_bundle(Bundle(tmp_path / "x.pte", (Call("a", (OutputOf(0),)),)), tmp_path)


def test_pickled_bundle_is_refused(tmp_path: Path) -> None:
    """No object arrays, whoever wrote the file."""
    save_bundle(Bundle(tmp_path / "x.pte", (Call("a", (np.zeros(2),)),)), tmp_path)
    np.save(tmp_path / "in_00000_0.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(RunnerError, match="cannot be read"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "line", ["in array ../secret.npy", "in array /etc/passwd", "nonsense 1", "call 1", "in output x", "rows first"]
)
def test_bundle_with_an_odd_line_is_refused(tmp_path: Path, line: str) -> None:
    """No way out of the folder, no guessing."""
    save_bundle(Bundle(tmp_path / "x.pte", (Call("a", (np.zeros(2),)),)), tmp_path)
    with (tmp_path / "bundle.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunnerError, match="cannot be read"):
        load_bundle(tmp_path)


def test_bundle_of_another_schema_is_refused(tmp_path: Path) -> None:
    """It says which it has and which is read."""
    (tmp_path / "bundle.txt").write_text("runner.bundle/1\n")
    with pytest.raises(RunnerError, match="unknown bundle schema"):
        load_bundle(tmp_path)


def test_bundle_can_be_moved_with_its_program(tmp_path: Path) -> None:
    """A program in the same folder is named alone; limits and trace go along."""
    folder, trace = tmp_path / "one", TraceRequest(tmp_path / "elsewhere", 4096)
    folder.mkdir()
    (folder / "y.pte").write_bytes(b"ET13")
    save_bundle(Bundle(folder / "y.pte", (), trace=trace, memory_bytes=1 << 30), folder)
    moved = folder.rename(tmp_path / "two")
    back = load_bundle(moved)
    assert (back.pte, back.memory_bytes) == (moved / "y.pte", 1 << 30)
    assert back.trace == TraceRequest(moved, 4096)


def test_bundle_knows_its_program(tmp_path: Path, program: Path) -> None:
    """By SHA-256 and length: one that was cut off on its way is not run."""
    save_bundle(Bundle(program, ()), tmp_path)
    assert recorded_hash(tmp_path) == hashlib.sha256(b"ET12").hexdigest()
    program.write_bytes(b"ET1")
    with pytest.raises(RunnerError, match="not the bundle's program"):
        load_bundle(tmp_path)
    program.unlink()
    with pytest.raises(RunnerError, match="is not there"):
        load_bundle(tmp_path)


def test_the_cpp_runner_has_the_same_constants() -> None:
    """Its header is written from Python's, and no other source of it spells one of them."""
    assert constants.HEADER.read_text() == constants.header()
    texts = [f'"{value}"' for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)]
    sources = {path.name: path.read_text() for path in constants.HEADER.parent.iterdir() if path != constants.HEADER}
    assert [(name, text) for name, source in sources.items() for text in texts if text in source] == []
    assert len(texts) > 5


def test_result_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    """Everything that a runner says, to be judged later."""
    calls = (Call("a", ()), Call("b", (), further=(Part(1, 0, 2),)))
    result = Result(
        "ok",
        "",
        outputs={0: np.float32([1, 2])},
        further={(1, 0): np.int64([3])},
        errors={1: "0x12"},
        call_s=(0.5, 0.25),
        load_s=1.5,
        peak_rss_bytes=7,
        versions={"executorch": "1.5.1"},
        operators=("aten::add",),
        isa="aarch64",
        cpu_features=("i8mm",),
        instructions={"SDOT": ""},
        in_use=("SDOT",),
        conditions={"thermal_status": 1.0},
    )
    save_result(result, tmp_path)
    back = load_result(tmp_path, calls)
    np.testing.assert_array_equal(back.outputs[0], [1, 2])
    np.testing.assert_array_equal(back.further[1, 0], [3])
    assert replace(back, outputs={}, further={}) == replace(result, outputs={}, further={})


@pytest.mark.parametrize(
    "change", [{"outcome": "splendid"}, {"call_s": "x"}, {"versions": 3}, {"isa": None, "errors": []}]
)
def test_odd_result_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """It comes from a process that ran an untrusted program."""
    save_result(Result("ok", ""), tmp_path)
    fields = json.loads((tmp_path / "result.json").read_text())
    save_fields(tmp_path, **(fields | change))
    with pytest.raises(RunnerError, match="cannot be read"):
        load_result(tmp_path, ())
