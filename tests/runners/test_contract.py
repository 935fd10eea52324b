"""What every runner keeps: calls share one program, errors are outcomes, every ending has its name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE
from verifier.core.errors import RunnerError
from verifier.ladder.trace import read_trace
from verifier.runner.bundle import save_bundle
from verifier.runner.constants import LOOP
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner, find_binary
from verifier.runner.process import run_child
from verifier.runner.protocol import ArgmaxOf, Bundle, Call, OutputOf, Part, Runner, TraceRequest
from verifier.runner.qemu import QemuRunner
from verifier.runner.remote import RemoteRunner
from verifier.runner.result import expected_path, load_result, save_array
from verifier.runner.saved import main as carry_out

pytestmark = pytest.mark.xdist_group("runner")


def test_greedy_token_is_fed_back(runner: Runner) -> None:
    """The embedding of the favoured token, by reference and by hand; an instance of its own has its own cache."""
    table = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32) * 0.1
    zero, one = np.array([0]), np.array([5])
    calls = (
        Call("text_decoder", (table[None, :5], zero)),
        Call("token_embedding", (ArgmaxOf(0),)),
        Call("text_decoder", (OutputOf(1), one)),
        Call("text_decoder", (OutputOf(1), one), instance=1),
    )
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    assert result.outcome == "ok"
    ids = np.array([[int(result.outputs[0].argmax())]])
    by_hand = runner.run(Bundle(EMBEDDED_PTE, (Call("token_embedding", (ids,)),)), timeout_s=60)
    assert np.array_equal(by_hand.outputs[0], result.outputs[1])
    assert not np.array_equal(result.outputs[2], result.outputs[3])


def test_the_last_row_alone_is_kept(runner: Runner) -> None:
    """[1, 5, D] becomes [1, D], and the index of its largest number is that of the last row of all of them."""
    ids = np.array([[5, 9, 300, 7, 954]])
    calls = (
        Call("token_embedding", (ids,), rows="last"),
        Call("token_embedding", (ids,)),
        Call("token_embedding", (ArgmaxOf(0),)),
        Call("token_embedding", (ArgmaxOf(1),)),
    )
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    assert result.outcome == "ok", result.message
    assert np.array_equal(result.outputs[0], result.outputs[1][:, -1])
    assert np.array_equal(result.outputs[2], result.outputs[3])


def test_runner_brings_outputs_back(runner: Runner) -> None:
    """The image tokens feed the decoder inside the child; versions, times, memory and operators come with them."""
    image = np.zeros((3, 336, 336), np.uint8)
    calls = (Call("vision_encoder", (image,)), Call("text_decoder", (OutputOf(0), np.array([0]))))
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=120)
    assert (result.outcome, result.finished_calls) == ("ok", 2)
    assert result.outputs[0].shape == (1, 576, 256)
    assert result.outputs[1].shape == (1, 1088)
    assert "llama::custom_sdpa.out" in result.operators
    assert result.peak_rss_bytes > 50e6


def test_error_of_a_call_keeps_what_came_before(runner: Runner) -> None:
    """Wrong rank in call 1: outcome failed, output of call 0 is there."""
    calls = (Call("token_embedding", (np.array([[5]]),)), Call("token_embedding", (np.zeros((2, 2, 2), np.int64),)))
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=120)
    assert result.outcome == "failed"
    assert list(result.outputs) == [0]


def test_unreadable_program_is_refused_by_the_runtime(tmp_path: Path, runner: Runner) -> None:
    """The runtime loads lazily and says no at the first call at the latest; it is never taken for an answer."""
    (tmp_path / "x.pte").write_bytes(b"\0" * 4096)
    result = runner.run(Bundle(tmp_path / "x.pte", (Call("a", ()),)), timeout_s=120)
    assert result.outcome in ("refused", "failed", "crashed")
    assert result.outputs == {}
    assert result.message


def test_call_that_may_fail_does_not_end_the_bundle(runner: Runner) -> None:
    """A position beyond the cache is an error of its call; what follows is answered, bit by bit as before it."""
    row, table = np.array([768]), np.random.default_rng(1).standard_normal((1, 4, 256)).astype(np.float32) * 0.1
    calls = (
        Call("text_decoder", (table, np.array([0]))),
        Call("text_decoder", (table[:, :1], row), may_fail=True),
        Call("text_decoder", (table, np.array([0]))),
    )
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    assert (result.outcome, list(result.errors)) == ("ok", [1])
    assert "error: 0x" in result.errors[1]
    assert np.array_equal(result.outputs[0], result.outputs[2])


def test_part_of_an_output_comes_back(runner: Runner) -> None:
    """The first rows along an axis."""
    image = np.zeros((3, 336, 336), np.uint8)
    calls = (Call("vision_encoder", (image,), further=(Part(0, 1, 7), Part(0, 2, 3))),)
    result = runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    whole = result.outputs[0]
    assert np.array_equal(result.further[0, 0], whole[:, :7])
    assert np.array_equal(result.further[0, 1], whole[:, :, :3])


def test_loop_is_timed_like_a_call(runner: Runner) -> None:
    """The yardstick of `budget.*` takes its time, gives nothing back, and leaves the numbers of calls as they are."""
    ids = Call("token_embedding", (np.array([[5]]),))
    result = runner.run(Bundle(EMBEDDED_PTE, (Call(LOOP, (), keep=False), ids)), timeout_s=60)
    assert (result.outcome, list(result.outputs)) == ("ok", [1])
    assert result.call_s[0] > 1e-4


def test_traced_run_records_every_call(runner: Runner, tmp_path: Path) -> None:
    """ETDump and debug buffer, one run for each call, custom attention among the results."""
    table = np.random.default_rng(1).standard_normal((1, 4, 256)).astype(np.float32) * 0.1
    calls = tuple(Call("text_decoder", (table, np.array([0]))) for _ in range(2))
    bundle = Bundle(EMBEDDED_PTE, calls, threads=1, trace=TraceRequest(tmp_path, 64 << 20))
    assert runner.run(bundle, timeout_s=60).outcome == "ok"
    traces = read_trace(tmp_path)
    assert len(traces) == 2
    assert traces[0].keys() == traces[1].keys()
    assert any(tensor.sizes == (1, 4, 4, 64) for tensors in traces[0].values() for tensor in tensors)


def test_runners_agree(native: NativeRunner) -> None:
    """Python and C++ on the same machine: the same XNNPACK, attention by other kernels."""
    image = np.random.default_rng(2).integers(0, 256, (3, 336, 250), dtype=np.uint8)
    calls = (Call("vision_encoder", (image,)), Call("text_decoder", (OutputOf(0), np.array([0]))))
    one, two = (r.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60) for r in (LocalRunner(), native))
    assert np.array_equal(one.outputs[0], two.outputs[0])
    assert np.abs(one.outputs[1] - two.outputs[1]).max() < 1e-2 * np.abs(one.outputs[1]).max()
    assert set(two.operators) >= {"llama::custom_sdpa.out", "llama::update_cache.out"}


def test_damaged_bundle_is_the_callers_error(native: NativeRunner, tmp_path: Path) -> None:
    """An array that is none stops the binary with status 2: no verdict about the program."""
    broken = tmp_path / "llava_main"
    broken.write_text(f"#!/bin/sh\nprintf x > ${{1#*=}}/in_00000_0.npy\nexec {native.binary} $1 $2\n")
    broken.chmod(0o755)
    bundle = Bundle(EMBEDDED_PTE, (Call("token_embedding", (np.array([[5]]),)),))
    with pytest.raises(RunnerError, match="not an array in NumPy's format"):
        NativeRunner(broken).run(bundle, timeout_s=60)


def test_missing_binary_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make native`."""
    monkeypatch.setenv("LLAVA_MAIN", str(tmp_path / "nothing"))
    with pytest.raises(RunnerError, match="make native"):
        find_binary()


def test_program_cut_off_in_flight_is_not_run(native: NativeRunner, tmp_path: Path) -> None:
    """A file that shrinks between bundle and child: no verdict about it."""
    pte = tmp_path / "x.pte"
    pte.write_bytes(EMBEDDED_PTE.read_bytes())
    cutting = tmp_path / "llava_main"
    cutting.write_text(f"#!/bin/sh\ntruncate -s 1000000 {pte}\nexec {native.binary} $1 $2\n")
    cutting.chmod(0o755)
    bundle = Bundle(pte, (Call("token_embedding", (np.array([[5]]),)),))
    with pytest.raises(RunnerError, match="not the bundle's program"):
        NativeRunner(cutting).run(bundle, timeout_s=60)


def test_memory_limit_has_its_name(runner: Runner) -> None:
    """A program that may not allocate what it plans; with enough it runs."""
    ids = np.full((1, 96), 5)
    bundle = Bundle(EMBEDDED_PTE, (Call("token_embedding", (ids,)),), trace=None)
    starved = replace(bundle, trace=TraceRequest(Path(), 3 << 30), memory_bytes=2 << 30)
    result = runner.run(starved, timeout_s=60)
    assert result.outcome == "memory"
    assert "more memory than its limit allows" in result.message
    assert runner.run(replace(bundle, memory_bytes=8 << 30), timeout_s=60).outcome == "ok"


def test_killed_child_has_its_name(native: NativeRunner, tmp_path: Path) -> None:
    """As by the system when memory runs out: an outcome that says so."""
    dying = tmp_path / "llava_main"
    dying.write_text("#!/bin/sh\nkill -KILL $$\n")
    dying.chmod(0o755)
    result = NativeRunner(dying).run(Bundle(EMBEDDED_PTE, (Call("vision_encoder", ()),)), timeout_s=60)
    assert (result.outcome, "killed by SIGKILL (the system's memory ran out" in result.message) == ("crashed", True)


def test_child_dies_with_its_parent(runner: Runner, tmp_path: Path) -> None:
    """A run that is killed leaves no process behind that computes on."""
    if isinstance(runner, RemoteRunner):
        pytest.skip("what runs on another machine is ended when its folder is removed, or by `timeout`")
    (tmp_path / "runner.pickle").write_bytes(pickle.dumps(runner))
    image = np.zeros((3, 336, 336), np.uint8)
    save_bundle(Bundle(EMBEDDED_PTE, tuple(Call("vision_encoder", (image,)) for _ in range(2000))), tmp_path)
    code = (
        "import pickle, sys; from pathlib import Path; from verifier.runner.bundle import load_bundle; folder = Path(sys.argv[1]); "
        "pickle.loads((folder / 'runner.pickle').read_bytes()).run(load_bundle(folder), timeout_s=600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"TMPDIR": str(tmp_path)})
    at = None
    for _ in range(1200):
        if at := next(iter(tmp_path.glob("verifier-*/result/at.txt")), None):
            break
        time.sleep(0.05)
    assert at is not None
    children = subprocess.run(
        ["pgrep", "-P", str(parent.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            return
        time.sleep(0.05)
    pytest.fail(f"{children} still run")


def test_saved_bundle_is_carried_out_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m verifier.runner`: status 0 if what is expected comes out, 1 if not, 2 for what cannot be run; the result is kept."""
    ids = np.array([[5, 6]])
    calls = (Call("token_embedding", (ids,)),)
    right = LocalRunner().run(Bundle(EMBEDDED_PTE, calls), timeout_s=60).outputs[0]
    save_bundle(Bundle(EMBEDDED_PTE, calls), tmp_path)
    save_array(right, expected_path(tmp_path, 0))
    assert carry_out([str(tmp_path), "--result", str(tmp_path / "result")]) == 0
    assert "ok: 1 of 1 calls on local" in capsys.readouterr().out
    np.testing.assert_array_equal(load_result(tmp_path / "result", calls).outputs[0], right)
    save_array(-right, expected_path(tmp_path, 0))
    assert carry_out([str(tmp_path)]) == 1
    save_array(right[:, :1], expected_path(tmp_path, 0))
    assert carry_out([str(tmp_path)]) == 1
    save_array(np.full_like(right, np.nan), expected_path(tmp_path, 0))
    assert carry_out([str(tmp_path)]) == 1
    save_array(right, expected_path(tmp_path, 0))
    save_bundle(Bundle(EMBEDDED_PTE, (replace(calls[0], keep=False),)), tmp_path)
    assert carry_out([str(tmp_path)]) == 1  # nothing came back to compare
    assert carry_out([str(tmp_path), "--target", "moon"]) == 2
    assert carry_out([str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("body", "outcome", "said"),
    [
        ("import os; os.abort()", "crashed", "killed by SIGABRT"),
        ("import time; time.sleep(60)", "timeout", "did not end within"),
        ("raise SystemExit(3)", "crashed", "exit status 3"),
    ],
)
def test_endings_of_a_child_have_names(body: str, outcome: str, said: str) -> None:
    """A runner's process that aborts, hangs, or leaves."""

    def command(sent: Path, back: Path) -> list[str]:
        return [sys.executable, "-c", body]

    result = run_child(command, Bundle(EMBEDDED_PTE, (Call("vision_encoder", ()),)), timeout_s=2)
    assert result.outcome == outcome
    assert said in result.message


def test_limit_of_years_is_cut_to_a_day(runner: Runner) -> None:
    """An emulated bundle of many calls may ask for more than the system can wait."""
    result = runner.run(Bundle(EMBEDDED_PTE, (Call("token_embedding", (np.array([[5]]),)),)), timeout_s=1e9)
    assert result.outcome == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("inputs_bytes", [1 << 19, 1 << 10], ids=["inputs", "outputs"])
def test_full_disk_has_its_name(
    runner: Runner, small_disk: Path, monkeypatch: pytest.MonkeyPatch, inputs_bytes: int
) -> None:
    """What goes in does not fit, or what comes out; nothing is left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    ids = np.full((1, 96), 5)
    extra = (Call("token_embedding", (np.zeros(inputs_bytes // 8, np.int64),), may_fail=True),)
    calls = (*(Call("token_embedding", (ids,)) for _ in range(4)), *extra)
    with pytest.raises(RunnerError, match="no space is left"):
        runner.run(Bundle(EMBEDDED_PTE, calls), timeout_s=60)
    assert list(small_disk.iterdir()) == []


def test_emulated_addresses_are_whole_pages(tmp_path: Path) -> None:
    """QEMU 10 refuses any other size, QEMU 7 does not care."""
    told, odd, emulator = tmp_path / "told", tmp_path / "odd.pte", tmp_path / "emulator"
    odd.write_bytes(bytes(12345))
    emulator.write_text(f'#!/bin/sh\necho "$@" >> {told}\nexit 3\n')
    emulator.chmod(0o755)
    bundle = Bundle(odd, (Call("token_embedding", (np.array([[5]]),)),), memory_bytes=98765)
    assert QemuRunner("max", emulator, tmp_path / "llava_main").run(bundle, timeout_s=1).outcome == "crashed"
    words = told.read_text().splitlines()[0].split()
    assert int(words[words.index("-R") + 1]) % (64 << 10) == 0
