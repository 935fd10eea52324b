"""The `qemu-python[:CPU]` target: ExecuTorch's own Python runtime for aarch64, under emulation.

The C++ runner brings kernels of its own for attention and cache; this one runs the wheel's. It needs what the wheel needs: torch
for aarch64, with stand-ins for CUDA's libraries, 1.2 GB in all. `python -m verifier.runner.arm_python` puts it together from the package registries.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.core.command import command
from verifier.core.errors import RunnerError
from verifier.core.python import ROOT, child_environment
from verifier.runner.arm_stubs import make_stubs
from verifier.runner.native import BINARY
from verifier.runner.process import run_child
from verifier.runner.protocol import Bundle, Result
from verifier.runner.qemu import DEFAULT_CPU, SLOWER, checked_cpu, find_emulator

FOLDER = BINARY.parents[1] / "arm-python"
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("libexpat1", "zlib1g", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1", "libgomp1"),
)
"""Debian's, of the release that this Python comes from."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
NEEDED = ("filelock", "typing-extensions", "sympy", "networkx<3.7", "jinja2", "fsspec")
"""Of torch 2.13, but for CUDA's libraries."""
FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
STARTING_S = 300.0
_TAIL = 2000


@dataclass(frozen=True)
class ArmPythonRunner:
    """One emulated Python per bundle; its start alone takes half a minute."""

    cpu: str
    emulator: Path
    folder: Path

    @property
    def name(self) -> str:
        """As given to `--target`."""
        return f"qemu-python:{self.cpu}"

    @property
    def isa(self) -> str:
        """`aarch64`."""
        return "aarch64"

    @property
    def at_once(self) -> int:
        """Two, as for the C++ runner under emulation."""
        return 2

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `run_child` for what is an outcome and what an error."""
        system = self.folder / "root"
        path = os.pathsep.join((str(self.folder / "site"), ROOT))

        def command(sent: Path, back: Path) -> list[str]:
            emulation = [str(self.emulator), "-L", str(system), "-cpu", self.cpu]
            python = [str(system / "usr/bin/python3.11"), "-P", "-m", "verifier.runner.child"]
            return [*emulation, *python, str(sent), str(back)]

        return run_child(
            command, bundle, timeout_s=STARTING_S + SLOWER * timeout_s, env=child_environment() | {"PYTHONPATH": path}
        )

    def close(self) -> None:
        """Nothing is left behind."""


def make_arm_python_runner(target: str) -> ArmPythonRunner:
    """The runner of `qemu-python` or `qemu-python:CPU`. Raises `RunnerError` that names what to prepare."""
    cpu = checked_cpu(target.partition(":")[2] or DEFAULT_CPU)
    emulator = find_emulator()
    if not (FOLDER / "ready").is_file():
        raise RunnerError(
            "Python for aarch64 is not there", expected=FOLDER, fix="python -m verifier.runner.arm_python (1.2 GB)"
        )
    return ArmPythonRunner(cpu, emulator, FOLDER)


def build(folder: Path = FOLDER) -> Path:
    """Put the system together in a folder: Debian's Python for arm64, and the wheels. Raises `RunnerError`."""
    if (folder / "ready").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _system(folder / "root")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "executorch", "numpy")}
    own = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    _wheels(folder / "site", ["--no-deps", *own])
    _wheels(folder / "site", NEEDED)
    make_stubs(folder / "site" / "torch" / "lib", folder / "root")
    (folder / "ready").touch()
    return folder


def _system(root: Path) -> None:
    """A sysroot with Python, and the files of a kernel that libraries look at."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for part in ("lists/partial", "cache/archives/partial", "debs"):
            (place / part).mkdir(parents=True)
        (place / "status").touch()
        options = [f"-o{key}" for key in ("APT::Architecture=arm64", "APT::Architectures=arm64")]
        options += [f"-oDir::State::lists={place}/lists", f"-oDir::Cache={place}/cache"]
        options += [f"-oDir::State::status={place}/status", "-oAPT::Sandbox::User=root"]
        _call(["apt-get", *options, "update"], place)
        _call(["apt-get", *options, "download", *PACKAGES], place / "debs")
        for package in sorted((place / "debs").glob("*.deb")):
            _call(["dpkg-deb", "-x", package, root], place)
    for path, text in (
        ("proc/cpuinfo", f"processor\t: 0\nFeatures\t: {FEATURES}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"),
        ("sys/devices/system/cpu/possible", "0\n"),
        ("sys/devices/system/cpu/present", "0\n"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _wheels(site: Path, wanted: Sequence[str]) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    options = ["--quiet", "--only-binary=:all:", "--python-version", "3.11", "--target", site, *platforms]
    _call([sys.executable, "-P", "-m", "pip", "install", *options, *wanted], site.parent)


def _call(words: Sequence[object], where: Path) -> None:
    if shutil.which(str(words[0])) is None:
        raise RunnerError(f"{words[0]} is not installed", fix="this takes a Debian system")
    done = subprocess.run([str(word) for word in words], cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-_TAIL:]
        raise RunnerError("Python for aarch64 cannot be put together", got=said, where=" ".join(map(str, words[:3])))


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 ready, 2 not."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.runner.arm_python", description="Prepare --target qemu-python."
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder, some 1.2 GB (default: {FOLDER})")
    print(build(parser.parse_args(arguments).out))
    return 0
