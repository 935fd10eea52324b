"""One file on several runtimes: equal, other by a fault, other by rounding, and not to be had. A faulty runtime is one that reads one weight otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE
from verifier.artifact.program import open_artifact
from verifier.artifact.rewire import rewire
from verifier.commands.skew import main
from verifier.core.errors import ArtifactError, RunnerError
from verifier.core.progress import Progress
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import find_constants
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner
from verifier.runner.protocol import Bundle, Call, Result
from verifier.skews import run
from verifier.skews.records import FirstChange, MethodSkew, RuntimeSkew, Skew
from verifier.skews.words import as_data, exit_status, lines

W1 = "layers.2.feed_forward.w1"


@dataclass(frozen=True)
class Release:
    """A runtime that stands for a release. `change` makes other bytes of the program, in `folder`, before it runs; with a `problem` nothing does."""

    version: str
    change: Callable[[bytes], bytes] | None = None
    folder: Path = Path()
    problem: str = ""

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"executorch {self.version}"

    isa, at_once = "x86_64", 1

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """On this machine's own runtime."""
        if self.problem:
            return Result("failed", self.problem)
        if self.change is None:
            return LocalRunner().run(bundle, timeout_s=timeout_s)
        changed = self.folder / "changed.pte"
        changed.write_bytes(self.change(bundle.pte.read_bytes()))
        return LocalRunner().run(replace(bundle, pte=changed), timeout_s=timeout_s)

    def close(self) -> None:
        """Nothing is left behind."""


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runtimes by the word that a command line has for them; an exception is raised."""
    known: dict[str, object] = {}

    def chosen(word: str) -> object:
        found = known[word]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(run, "environment_runner", chosen)
    return known


@pytest.fixture(scope="session")
def other_weight() -> Callable[[bytes], bytes]:
    """Reads one 4-bit integer of a feed-forward layer otherwise, wherever its weights lie in the file."""
    place = find_constants(EMBEDDED_PTE, open_checkpoint())[f"text_decoder.{W1}.weight"].value.constant
    assert place is not None
    weight = bytes(open_artifact(EMBEDDED_PTE).storage.read(place))

    def change(program: bytes) -> bytes:
        at = program.index(weight) + len(weight) // 2
        return program[:at] + bytes([program[at] ^ 0x80]) + program[at + 1 :]

    return change


def _skew(words: list[str]) -> Skew:
    return run.compare_runtimes(EMBEDDED_PTE, None, words, progress=Progress(quiet=True), pictures=1)


def test_the_first_wrong_instruction_is_named(
    releases: dict[str, object],
    other_weight: Callable[[bytes], bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The right module, which runtime is beyond its limit, exit status 1; encoder and embedding have the same bits. A release that cannot be had is
    named with its reason."""
    releases |= {
        "1.4.1": Release("1.4.1"),
        "1.5.1": Release("1.5.1", other_weight, tmp_path),
        "0.9": RunnerError("executorch 0.9 asks for torch<2.9"),
        "1.5.0": Release("1.5.0"),
    }
    found = tmp_path / "skew.json"
    words = [
        str(EMBEDDED_PTE),
        "--runtimes",
        "1.4.1,1.5.0,1.5.1,0.9",
        "--pictures",
        "1",
        "--json",
        str(found),
        "--quiet",
    ]
    assert main(words) == 1
    assert "1.5.1: an instruction is further from the program's bytes than rounding goes" in capsys.readouterr().out
    data = json.loads(found.read_text())
    assert (data["schema"], data["base"], data["exit_status"]) == ("verifier.skew/1", "1.4.1", 1)
    assert {one["runtime"]: one["finding"] for one in data["runtimes"]} == {
        "1.5.0": "same",
        "1.5.1": "beyond",
        "0.9": "not run",
    }
    assert data["runtimes"][-1]["reason"] == "executorch 0.9 asks for torch<2.9"
    methods = {method["method"]: method for method in data["runtimes"][1]["methods"]}
    assert methods["vision_encoder"]["differing"] == methods["token_embedding"]["differing"] == 0
    decoder = methods["text_decoder"]
    assert 10 < decoder["differing"] <= decoder["calls"]
    first = decoder["first"]
    assert W1 in first["module"] and first["base_share"] <= 1 < first["share"]
    assert "FullyConnected" in first["call_text"] and 0 < first["share_off"] < 0.1


def test_a_release_that_does_not_run_parts_of_a_method_is_not_judged(
    releases: dict[str, object], other_weight: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """What differs is said, what begins it is not; the others are compared all the same."""

    @dataclass(frozen=True)
    class Stubborn(Release):
        def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
            """Only whole programs."""
            if bundle.pte.name == "prefix.pte":
                return Result("failed", "error 0x12")
            return super().run(bundle, timeout_s=timeout_s)

    releases |= {"1": Release("1"), "2": Stubborn("2", other_weight, tmp_path), "3": Release("3")}
    skew = _skew(["1", "2", "3"])
    assert [one.finding for one in skew.runtimes] == ["not judged", "same"]
    decoder = next(one for one in skew.runtimes[0].methods if one.method == "text_decoder")
    assert decoder.differing and "error 0x12" in decoder.problem
    assert any("what begins it could not be found" in line for line in lines(skew))
    assert exit_status(skew) == 2


def test_the_same_runtime_twice_has_the_same_bits(releases: dict[str, object]) -> None:
    """Nothing is looked for; a runtime on which the program fails is no base, and is named."""
    releases |= {"a": Release("1"), "b": Release("2", problem="error 0x14"), "c": Release("3")}
    skew = _skew(["b", "a", "c"])
    assert skew.base == "1"
    assert [(one.runtime, one.finding, one.reason) for one in skew.runtimes] == [
        ("2", "not run", "failed: error 0x14"),
        ("3", "same", ""),
    ]
    assert all(method.differing == 0 for method in skew.runtimes[1].methods)
    assert exit_status(skew) == 2
    releases |= {"a": Release("1", problem="error 0x14")}
    with pytest.raises(RunnerError, match="runs on none of the runtimes"):
        _skew(["b", "a"])


def test_other_kernels_differ_by_rounding(releases: dict[str, object], native: NativeRunner) -> None:
    """The C++ runner brings kernels of its own for attention: another order of sums, within the limit of the instruction on both sides."""
    releases |= {"wheel": Release("wheel"), "c++": _Native(native.binary, "c++")}
    skew = _skew(["wheel", "c++"])
    one = skew.runtimes[0]
    assert one.finding in ("rounding", "answers")
    first = next(method.first for method in one.methods if method.method == "text_decoder")
    assert first is not None and not first.unknown
    assert "custom_sdpa" in first.call_text and "attention" in first.module
    assert first.base_share is not None and first.share is not None
    assert 0 <= first.base_share <= 1 and 0 <= first.share <= 1
    assert exit_status(skew) == 0


@dataclass(frozen=True)
class _Native(NativeRunner):
    version: str = ""


FIRST = FirstChange("text_decoder", 3, 7, "text_decoder.layers.0.attention.wq", "[x] -> y", 0.01, 90.0, 0.2, 0.4)
DIFFERING = MethodSkew("text_decoder", 10, 4, 80.0, 4, FIRST)


@pytest.mark.parametrize(
    ("one", "finding", "status"),
    [
        (RuntimeSkew("2"), "same", 0),
        (RuntimeSkew("2", methods=(DIFFERING,)), "rounding", 0),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=None, alone=0),)), "rounding", 0),
        (RuntimeSkew("2", methods=(DIFFERING,), answers=3, other_answers=("x",)), "answers", 0),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=replace(FIRST, share=1.01)),)), "beyond", 1),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=replace(FIRST, base_share=9.0)),)), "beyond", 1),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=replace(FIRST, share=float("nan"))),)), "beyond", 1),
        (
            RuntimeSkew("2", methods=(replace(DIFFERING, first=replace(FIRST, share=None, unknown="?")),)),
            "not judged",
            2,
        ),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=replace(FIRST, unknown="?")),)), "not judged", 2),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=None),)), "not judged", 2),
        (RuntimeSkew("2", methods=(replace(DIFFERING, first=None, alone=0, problem="?"),)), "not judged", 2),
        (RuntimeSkew("2", reason="no wheel"), "not run", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_findings(one: RuntimeSkew, finding: str, status: int) -> None:
    """In one word, as exit status, and as JSON without NaN."""
    skew = Skew("x.pte", "0" * 64, "m", "1", {}, ("x",), (one,))
    assert (one.finding, exit_status(skew)) == (finding, status)
    assert f'"finding": "{finding}"' in json.dumps(as_data(skew), allow_nan=False)
    assert finding in lines(skew)[1]


def test_nothing_to_compare_is_no_pass() -> None:
    """A comparison without another runtime says nothing."""
    assert exit_status(Skew("x.pte", "0" * 64, "m", "1", {}, ("x",), ())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runtimes", "1.5.1"], "a comparison needs two runtimes"),
        (["--runtimes", "1.5.1,1.5.1"], "a comparison needs two runtimes"),
        (["--runtimes", "1,2", "--pictures", "0"], "at least one picture"),
        (["--runtimes", "latest,1.5.1"], "no release of executorch"),
        (["--runtimes", "/no/python,1.5.1"], "no such Python"),
    ],
)
def test_bad_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, before anything is installed."""
    assert main([str(EMBEDDED_PTE), *words, "--quiet"]) == 2
    assert said in capsys.readouterr().err


def test_a_method_ends_behind_an_instruction(tmp_path: Path) -> None:
    """It returns what that instruction computed, the runtime's own; the rest of the file is as it was."""
    artifact = open_artifact(EMBEDDED_PTE)
    plan = artifact.plans["token_embedding"]
    last = plan.instructions[-1].index
    rewire(artifact, tmp_path / "x.pte", "token_embedding", outputs=plan.outputs, until=last)
    shutil.copy(EMBEDDED_PTE, tmp_path / "whole.pte")
    call = Call("token_embedding", (np.array([[5, 6, 7]], np.int64),))
    results = [LocalRunner().run(Bundle(tmp_path / n, (call,)), timeout_s=60) for n in ("x.pte", "whole.pte")]
    assert np.array_equal(results[0].outputs[0], results[1].outputs[0])
    decoder = artifact.plans["text_decoder"]
    value = artifact.plans["text_decoder"].instructions[3].args[-1]
    rewire(artifact, tmp_path / "y.pte", "text_decoder", outputs=[value], until=3)
    made = open_artifact(tmp_path / "y.pte")
    assert made.plans["text_decoder"].instructions == decoder.instructions[:4]
    assert made.plans["text_decoder"].outputs == (value,)
    assert made.plans["vision_encoder"].instructions == artifact.plans["vision_encoder"].instructions
    with pytest.raises(ArtifactError, match="no such instruction"):
        rewire(artifact, tmp_path / "z.pte", "text_decoder", until=len(decoder.instructions))
