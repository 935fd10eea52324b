"""The same bytes on other runtimes: C++ on this machine, Arm under emulation. Instruction by instruction, as anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.native import NativeRunner
from runner.qemu import QemuRunner
from tests.support import EMBEDDED_PTE, verify

pytestmark = pytest.mark.xdist_group("targets")


def _report(folder: Path, *arguments: str) -> dict[str, object]:
    verify(EMBEDDED_PTE, *arguments, "--report", str(folder))
    report: dict[str, object] = json.loads((folder / "report.json").read_text())
    return report


def test_native_runner_passes_every_check(
    native: NativeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole gate on the C++ runner with its own attention kernels."""
    monkeypatch.setenv("LLAVA_MAIN", str(native.binary))
    report = _report(tmp_path, "--target", "native")
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []  # type: ignore[attr-defined]
    assert report["verdict"] == "pass"
    target = report["target"]
    assert isinstance(target, dict)
    assert target["name"] == "native"
    assert target["cpu_features"]
    assert "llava_main" in target["versions"]


def test_every_instruction_is_right_on_an_emulated_phone(
    emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cortex-a76: all instructions of two conversations against the interpreter; the step is the device's."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(emulated.binary))
    report = _report(tmp_path, "--target", "qemu:cortex-a76", "--checks", "layers.*")
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []  # type: ignore[attr-defined]
    steps = {rung["step"]: rung["compared"] for rung in report["rungs"]}  # type: ignore[attr-defined]
    assert steps["device"] > 0
    assert steps["kernel"] == 0
    target = report["target"]
    assert isinstance(target, dict)
    assert (target["isa"], target["name"]) == ("aarch64", "qemu:cortex-a76")
    assert "asimddp" in target["cpu_features"]
    assert "llava_main" in target["versions"]
    assert report["partial"] is True


@pytest.mark.slow
def test_sme_kernel_of_the_patch_embedding_is_named(
    emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SME switched on XNNPACK's convolution goes wrong under this emulator: instruction and node are named."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(emulated.binary))
    report = _report(tmp_path, "--target", "qemu:max", "--checks", "layers.*")
    blame = report["blame"]
    assert report["verdict"] == "fail"
    assert isinstance(blame, dict)
    assert (blame["step"], blame["method"], blame["instruction"]) == ("device", "vision_encoder", 10)
    assert "Its first wrong node is number 2, XNNConv2d" in blame["message"]


@pytest.mark.parametrize(
    ("target", "said"), [("native", "make native"), ("qemu", "make native-arm"), ("qemu:a b", "not a CPU model")]
)
def test_target_that_is_not_there_says_what_to_do(
    target: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and the command to run."""
    monkeypatch.setenv("LLAVA_MAIN", str(tmp_path / "none"))
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(tmp_path / "none"))
    monkeypatch.setattr("runner.qemu.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("runner.qemu.SYSROOT", tmp_path)
    assert verify(EMBEDDED_PTE, "--target", target) == 2
    assert said in capsys.readouterr().err


def test_missing_emulator_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the package's name."""
    monkeypatch.setattr("runner.qemu.shutil.which", lambda name: None)
    assert verify(EMBEDDED_PTE, "--target", "qemu") == 2
    assert "apt-get install qemu-user-static" in capsys.readouterr().err
