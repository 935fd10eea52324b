"""Shared fixtures: the embedded model, a micro model, and exports that all workers share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

# before torch is imported: with several workers and their children on two cores, threads of OpenMP wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support import EMBEDDED_PTE, verify
from verifier.families.checkpoint import EMBEDDED, Checkpoint
from verifier.families.registry import open_checkpoint
from verifier.faults.subjects import make_micro_checkpoint, make_micro_model
from verifier.faults.surgery import change_bytes, find_constants
from verifier.runner.native import NativeRunner
from verifier.runner.native.cmake import build
from verifier.runner.qemu import EMULATORS, QemuRunner

gc.set_threshold(50_000, 20, 50)  # to look for garbage seldom saves a tenth of an export


@pytest.fixture(scope="session")
def embedded_pte() -> Path:
    """The committed program."""
    return EMBEDDED_PTE


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all xdist workers of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if base.name.startswith("pytest-") else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared_folder: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once per session, whichever worker asks first."""

    def make(name: str, build: Callable[[Path], None]) -> Path:
        folder, done = shared_folder / name, shared_folder / f"{name}.done"
        with FileLock(shared_folder / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def report_folder(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The report of one whole verification of the embedded program, on an image of the user's too, its exit status, and the evidence."""

    def build(folder: Path) -> None:
        image = EMBEDDED_PTE.parent / "images" / "photo_coffee.jpg"
        status = verify(EMBEDDED_PTE, str(image), "--report", str(folder), "--keep-evidence", str(folder / "evidence"))
        (folder / "status").write_text(str(status))

    return once("report", build)


@pytest.fixture(scope="session")
def flipped_report(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The report of the audit of the embedded program with one wrong 4-bit weight."""

    def build(folder: Path) -> None:
        pte = Path(shutil.copy(EMBEDDED_PTE, folder / "flipped.pte"))
        constant = find_constants(pte, open_checkpoint(EMBEDDED))["text_decoder.layers.2.feed_forward.w1.weight"]
        assert constant.value.constant is not None
        change_bytes(
            pte, constant.value.constant, lambda raw: np.concatenate([raw[:1000], raw[1000:1001] ^ 0x70, raw[1001:]])
        )
        verify(pte, "--checks", "weights.*", "--report", str(folder))

    return once("flipped-report", build)


@pytest.fixture(scope="session")
def micro_checkpoint(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A random LLaVA of two small layers on each side, in Hugging Face layout."""
    return once("micro", make_micro_checkpoint)


@pytest.fixture(scope="session")
def micro_model(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with a micro checkpoint, its golden answers and its export."""
    return once("micro-model", make_micro_model)


@pytest.fixture(scope="session")
def micro(micro_model: Path) -> Checkpoint:
    """The micro checkpoint."""
    return open_checkpoint(micro_model)


@pytest.fixture(scope="session")
def native(once: Callable[[str, Callable[[Path], None]], Path]) -> NativeRunner:
    """`llava_main`, built from this tree."""
    return NativeRunner(once("native", lambda folder: print(build(folder))) / "llava_main")


@pytest.fixture(scope="session")
def emulated(once: Callable[[str, Callable[[Path], None]], Path]) -> QemuRunner:
    """The aarch64 `llava_main` under qemu, where compiler and emulator are installed."""
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
    if emulator is None or shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs Debian's qemu-user-static and g++-aarch64-linux-gnu")
    folder = once("native-aarch64", lambda folder: print(build(folder, arch="aarch64")))
    return QemuRunner("cortex-a76", Path(emulator), folder / "llava_main")
