"""Runners: bundles survive the disk, and every ending of a child has its name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from runner.local import LocalRunner
from runner.protocol import ArgmaxOf, Bundle, Call, OutputOf, Part, load_bundle, save_bundle
from tests.support import EMBEDDED_PTE
from verifier.errors import RunnerError

pytestmark = pytest.mark.xdist_group("runner")


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


def test_greedy_token_is_fed_back() -> None:
    """The embedding of the favoured token, by reference and by hand; an instance of its own has its own cache."""
    table = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32) * 0.1
    zero, one = np.array([0]), np.array([5])
    calls = (
        Call("text_decoder", (table[None, :5], zero)),
        Call("token_embedding", (ArgmaxOf(0),)),
        Call("text_decoder", (OutputOf(1), one)),
        Call("text_decoder", (OutputOf(1), one), instance=1),
    )
    result = LocalRunner().run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    assert result.outcome == "ok"
    ids = np.array([[int(result.outputs[0].argmax())]])
    by_hand = LocalRunner().run(Bundle(EMBEDDED_PTE, (Call("token_embedding", (ids,)),)), timeout_s=60)
    assert np.array_equal(by_hand.outputs[0], result.outputs[1])
    assert not np.array_equal(result.outputs[2], result.outputs[3])


def test_bundle_may_not_use_an_output_before_it_exists(tmp_path: Path) -> None:
    """References go backwards only."""
    with pytest.raises(RunnerError, match="does not exist yet"):
        save_bundle(Bundle(tmp_path / "x.pte", (Call("a", (OutputOf(0),)),)), tmp_path)


def test_pickled_bundle_is_refused(tmp_path: Path) -> None:
    """No object arrays, whoever wrote the file."""
    save_bundle(Bundle(tmp_path / "x.pte", (Call("a", (np.zeros(2),)),)), tmp_path)
    np.savez(tmp_path / "inputs.npz", **{"0_0": np.array([{}], object)})
    with pytest.raises(RunnerError, match="cannot be read"):
        load_bundle(tmp_path)


def test_local_runner_brings_outputs_back() -> None:
    """The image tokens feed the decoder inside the child; versions, times and operators come with them."""
    image = np.zeros((3, 336, 336), np.uint8)
    calls = (Call("vision_encoder", (image,)), Call("text_decoder", (OutputOf(0), np.array([0]))))
    result = LocalRunner().run(Bundle(EMBEDDED_PTE, calls), timeout_s=120)
    assert (result.outcome, result.finished_calls) == ("ok", 2)
    assert result.outputs[0].shape == (1, 576, 256)
    assert result.outputs[1].shape == (1, 1088)
    assert "llama::custom_sdpa.out" in result.operators
    assert result.peak_rss_bytes > 50e6


def test_error_of_a_call_keeps_what_came_before() -> None:
    """Wrong rank in call 1: outcome failed, output of call 0 is there."""
    calls = (Call("token_embedding", (np.array([[5]]),)), Call("token_embedding", (np.zeros((2, 2, 2), np.int64),)))
    result = LocalRunner().run(Bundle(EMBEDDED_PTE, calls), timeout_s=120)
    assert result.outcome == "failed"
    assert list(result.outputs) == [0]


def test_unreadable_program_is_refused_by_the_runtime(tmp_path: Path) -> None:
    """The runtime loads lazily and says no at the first call at the latest; it is never taken for an answer."""
    (tmp_path / "x.pte").write_bytes(b"\0" * 4096)
    result = LocalRunner().run(Bundle(tmp_path / "x.pte", (Call("a", ()),)), timeout_s=120)
    assert result.outcome in ("refused", "failed", "crashed")
    assert result.outputs == {}
    assert result.message


@pytest.mark.parametrize(
    ("body", "outcome", "said"),
    [
        ("import os; os.abort()", "crashed", "killed by SIGABRT"),
        ("import time; time.sleep(60)", "timeout", "did not end within"),
        ("raise SystemExit(3)", "crashed", "exit status 3"),
    ],
)
def test_endings_of_a_child_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, outcome: str, said: str
) -> None:
    """A stand-in interpreter that aborts, hangs, or leaves."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr("runner.local.sys.executable", str(script))
    result = LocalRunner().run(Bundle(EMBEDDED_PTE, (Call("vision_encoder", ()),)), timeout_s=2)
    assert result.outcome == outcome
    assert said in result.message
