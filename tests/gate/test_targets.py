"""The same bytes on other runtimes: C++ on this machine, Arm under emulation. Instruction by instruction, as anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, FEW_IMAGES, WITHOUT_USE, verify
from verifier.runner.native import NativeRunner
from verifier.runner.qemu import QemuRunner
from verifier.runner.saved import main as carry_out

pytestmark = pytest.mark.xdist_group("targets")


def _report(folder: Path, *arguments: str) -> dict[str, object]:
    verify(EMBEDDED_PTE, *arguments, "--report", str(folder))
    report: dict[str, object] = json.loads((folder / "report.json").read_text())
    return report


def test_native_runner_passes_every_check(
    native: NativeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that asks the target, on the C++ runner with its own attention kernels."""
    monkeypatch.setenv("LLAVA_MAIN", str(native.binary))
    report = _report(tmp_path, "--target", "native", "--checks", WITHOUT_USE, "--images", FEW_IMAGES)
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []  # type: ignore[attr-defined]
    assert report["verdict"] == "pass"
    target = report["target"]
    assert isinstance(target, dict)
    assert target["name"] == "native"
    assert target["cpu_features"]
    assert "llava_main" in target["versions"]


def test_emulated_phone_passes(emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cortex-a76: every instruction of two conversations; what is the kernels' is the device's step. The whole gate takes a
    quarter of an hour there: `make test-slow` has it."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(emulated.binary))
    report = _report(tmp_path, "--target", "qemu:cortex-a76", "--checks", "layers.*,device.*")
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []  # type: ignore[attr-defined]
    steps = {rung["step"]: rung["compared"] for rung in report["rungs"]}  # type: ignore[attr-defined]
    assert steps["device"] > 0
    assert steps["kernel"] == 0
    target = report["target"]
    assert isinstance(target, dict)
    assert (target["isa"], target["name"]) == ("aarch64", "qemu:cortex-a76")
    assert "asimddp" in target["cpu_features"]
    assert {"llava_main", "qemu"} <= set(target["versions"])
    assert target["instructions"] == {"SDOT": "right"}
    assert "SDOT" in target["in_use"]
    assert "SMMLA" not in target["in_use"]
    assert report["partial"] is True
    passed = {c["id"] for c in report["checks"]}  # type: ignore[attr-defined]
    assert {"device.instructions", "device.lengths", "device.host", "layers.kernel"} <= passed


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "used"), [("cortex-a76", "SDOT"), ("max,sme=off", "SMMLA")])
def test_other_phones_pass_every_check(
    cpu: str, used: str, emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole gate, with the dot product and with i8mm."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(emulated.binary))
    report = _report(tmp_path, "--target", f"qemu:{cpu}")
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []  # type: ignore[attr-defined]
    assert report["partial"] is False
    assert used in report["target"]["in_use"]  # type: ignore[index]


@pytest.mark.slow
def test_sme_is_judged_by_whether_the_emulator_has_it_right(
    emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`max` has SME. QEMU 7.2 computes SMOPA wrongly: not verified, and the machine is blamed; the report still names instruction
    and node, and the saved reproduction departs there and nowhere else. Where SMOPA is right, all is right."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(emulated.binary))
    report = _report(tmp_path, "--target", "qemu:max", "--checks", "layers.*,device.*")
    target, blame = report["target"], report["blame"]
    assert isinstance(target, dict)
    assert {"SMOPA", "FMOPA"} <= set(target["in_use"])
    if target["instructions"]["SMOPA"] == "right":
        assert report["verdict"] == "pass"
        return
    assert report["verdict"] == "error"
    assert isinstance(blame, dict)
    assert "this machine computes SMOPA" in blame["message"]
    kernel = next(c for c in report["checks"] if c["id"] == "layers.kernel" and c["verdict"] == "error")  # type: ignore[attr-defined]
    assert (kernel["where"]["method"], kernel["where"]["instruction"]) == ("vision_encoder", 10)
    assert "The first wrong node inside it is number 2 [XNNConv2d(" in kernel["message"]
    folder = tmp_path / "reproduction"
    assert str(folder) in kernel["message"]
    for model, status in (("qemu:max", 1), ("qemu:max,sme=off", 0), ("qemu:cortex-a76", 0), ("local", 0)):
        assert carry_out([str(folder), "--target", model]) == status, model
        capsys.readouterr()


@pytest.mark.parametrize(
    ("target", "said"), [("native", "make native"), ("qemu", "make native-arm"), ("qemu:a b", "not a CPU model")]
)
def test_target_that_is_not_there_says_what_to_do(
    target: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and the command to run."""
    monkeypatch.setenv("LLAVA_MAIN", str(tmp_path / "none"))
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(tmp_path / "none"))
    monkeypatch.setattr("verifier.runner.qemu.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("verifier.runner.qemu.SYSROOT", tmp_path)
    assert verify(EMBEDDED_PTE, "--target", target) == 2
    assert said in capsys.readouterr().err


def test_missing_emulator_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the package's name."""
    monkeypatch.setattr("verifier.runner.qemu.shutil.which", lambda name: None)
    assert verify(EMBEDDED_PTE, "--target", "qemu") == 2
    assert "apt-get install qemu-user-static" in capsys.readouterr().err
