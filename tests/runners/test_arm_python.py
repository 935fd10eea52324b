"""The wheel's own Python runtime on Arm: its attention and its cache, which the C++ runner replaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.core.errors import RunnerError
from verifier.runner import qemu_python
from verifier.runner.targets import make_runner


@pytest.mark.slow
def test_wheels_own_kernels_are_right_on_arm(tmp_path: Path) -> None:
    """Every instruction of two conversations; the operators are the wheel's, attention among them."""
    qemu_python.build()
    assert (
        verify(EMBEDDED_PTE, "--target", "qemu-python", "--checks", "layers.*,device.*", "--report", str(tmp_path)) == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["target"]["isa"] == "aarch64"
    assert {"torch", "executorch"} <= set(report["target"]["versions"])
    assert {c["case"]: c["verdict"] for c in report["checks"] if c["id"] == "device.host"} == {
        "vision_encoder": "pass",
        "text_decoder": "pass",
    }


def test_python_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one command; a build that lacks a tool names it."""
    monkeypatch.setattr(qemu_python, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(qemu_python, "find_emulator", lambda: Path("/bin/true"))
    with pytest.raises(RunnerError, match=r"python -m verifier\.runner\.arm_python"):
        make_runner("qemu-python")
    monkeypatch.setattr("verifier.runner.qemu_python.shutil.which", lambda name: None)
    assert qemu_python.main(["--out", str(tmp_path / "out")]) == 2
