"""Bundles survive the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.bundle import load_bundle, save_bundle
from runner.protocol import ArgmaxOf, Bundle, Call, OutputOf, Part
from verifier.errors import RunnerError


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
    """Other outputs, greedy tokens, instances, parts of caches."""
    calls = (
        Call("a", (np.zeros(2),), instance=1, further=(Part(3, 1, 48),)),
        Call("b", (OutputOf(0, output=2), ArgmaxOf(0)), may_fail=True),
    )
    save_bundle(Bundle(tmp_path / "x.pte", calls), tmp_path)
    first, second = load_bundle(tmp_path).calls
    assert (first.instance, first.further) == (1, (Part(3, 1, 48),))
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
    "line", ["in array ../secret.npy", "in array /etc/passwd", "nonsense 1", "call 1", "in output x"]
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
