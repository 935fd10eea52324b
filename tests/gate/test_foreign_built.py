"""Other exporters' programs made anew, not the committed ones: optimum-executorch in an environment of its own, ExecuTorch's `export_llava` in ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import foreign
from tests.bench.foreign import EXPORTS, make_checkpoint, make_environment, make_program, run
from tests.support import verify
from verifier.core.compare import Array
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import change_bytes, find_constants

CHOSEN = (
    "upstream-plain-1-mended-group-size-64-affine",
    "optimum-grouped-1-qlinear_group_size_64-qembedding_8w-qembedding_group_size_32-max_length_320",
    "optimum-one-key-head-qlinear_encoder_8da4w-qlinear_encoder_group_size_32-max_length_384",
)


@pytest.fixture(scope="session")
def optimum_python(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The Python of an environment with optimum-executorch: that of `OPTIMUM_PYTHON`, or a new one."""
    if given := os.environ.get("OPTIMUM_PYTHON"):
        return Path(given)
    try:
        return once("optimum", lambda folder: print(make_environment(folder))) / "bin" / "python"
    except subprocess.CalledProcessError as error:
        pytest.skip(f"optimum-executorch cannot be installed here: {error}")


@pytest.mark.slow  # 7 minutes to install, a minute for each export
@pytest.mark.parametrize("name", CHOSEN)
def test_a_program_made_anew_is_verified(name: str, optimum_python: Path, tmp_path: Path) -> None:
    """No manifest, calibration or golden data; grouped queries and another geometry among them."""
    outcome = run(next(export for export in EXPORTS if export.name == name), tmp_path, optimum_python)
    assert (outcome.get("not_exported"), outcome["alarms"], outcome["status"]) == (None, [], 0)
    assert outcome["checks"] > 100


@pytest.mark.slow
def test_a_wrong_weight_of_a_4_bit_tower_is_found_by_its_bytes_and_by_the_layers(
    optimum_python: Path, tmp_path: Path
) -> None:
    """One bit of one of 12,288 integers, in a chain of linears that are one delegate. The sound file is a case of the test above."""
    export = next(one for one in EXPORTS if one.name == CHOSEN[2])
    checkpoint, pte, report = make_checkpoint(export.checkpoint, tmp_path), tmp_path / "x.pte", tmp_path / "report.json"
    make_program(export, pte, checkpoint=checkpoint, optimum=optimum_python)
    name = "vision_encoder.tower.layers.1.fc1.weight"
    place = find_constants(pte, open_checkpoint(str(checkpoint)))[name].value.constant
    assert place is not None

    def flip(raw: Array) -> Array:
        raw[500] ^= 0x10
        return raw

    change_bytes(pte, place, flip)
    checks = "weights.tensors,layers.constants,layers.kernel"
    assert verify(pte, "--model", str(checkpoint), "--checks", checks, "--json", str(report)) == 1
    failed = [c for c in json.loads(report.read_text())["checks"] if c["verdict"] != "pass"]
    assert [(c["id"], c["case"]) for c in failed] == [
        ("weights.tensors", name),
        ("layers.constants", "vision_encoder.layers.1"),
    ]


def test_a_program_that_cannot_be_made_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that verified nothing has shown nothing; the next run tries again."""
    monkeypatch.setattr(foreign, "make_checkpoint", lambda name, work: tmp_path)
    words = ["foreign", str(tmp_path), "--optimum", "/bin/false", "--only", "optimum-one-key-head-qlinear_8da8w"]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):
        assert foreign.main() == 1
