"""The `qemu[:CPU]` target: the aarch64 `llava_main` under user-mode emulation, with a CPU model that stands for phones.

`cortex-a76` has the dot product (phones from 2019 on), `max,sme=off` adds i8mm (from 2022 on), `max` adds SME.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from verifier.core.errors import RunnerError, UsageError
from verifier.core.system import physical_memory_bytes
from verifier.runner.native import bundle_command, find_arm_binary, is_portable, start_words
from verifier.runner.process import run_child
from verifier.runner.protocol import Bundle, Result

EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
SYSROOT = Path("/usr/aarch64-linux-gnu")
DEFAULT_CPU = "cortex-a76"
SLOWER = 40.0
"""How much longer than natively calls may take: a prefill of 670 tokens measured 10.4 s for 0.29 s."""

ROOM_BYTES = 512 << 20
"""Addresses for binary, libraries and stacks, beside the mapped program and what the bundle may allocate."""
STEP_BYTES = 1 << 16
"""QEMU 10 takes whole pages only."""


@dataclass(frozen=True)
class QemuRunner:
    """One emulated process of the C++ runner per bundle."""

    cpu: str
    emulator: Path
    binary: Path

    @property
    def name(self) -> str:
        """As given to `--target`."""
        return f"qemu:{self.cpu}"

    @property
    def isa(self) -> str:
        """`aarch64`."""
        return "aarch64"

    @property
    def at_once(self) -> int:
        """Two: emulation takes much longer than the references, and two processes of one thread get further than one of two,
        whose threads wait for each other in loops: 768 single tokens took 2.4 times as long."""
        return 2

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `run_child` for what is an outcome and what an error. The limit grows with the emulation."""

        def command(sent: Path, back: Path) -> list[str]:
            room = (bundle.memory_bytes or physical_memory_bytes()) + bundle.pte.stat().st_size + ROOM_BYTES
            room = -(-room // STEP_BYTES) * STEP_BYTES
            return [*self.emulation, "-R", str(room), *bundle_command(self.binary, sent, back)]

        # a limit from outside would have QEMU look through all addresses for memory that it may have, for minutes
        given = replace(bundle, memory_bytes=None, threads=1 if bundle.threads is None else bundle.threads)
        result = run_child(command, given, timeout_s=SLOWER * timeout_s)
        return replace(result, versions=result.versions | {"qemu": emulator_version(self.emulator)})

    @property
    def emulation(self) -> tuple[str, ...]:
        """What stands before the command that is emulated. A portable `llava_main` needs no system."""
        system = () if is_portable(self.binary) else ("-L", str(SYSROOT))
        return (str(self.emulator), *system, "-cpu", self.cpu)

    @property
    def program(self) -> tuple[str, ...]:
        """The command up to its flags."""
        return (*self.emulation, *start_words(str(self.binary), portable=is_portable(self.binary)))

    def close(self) -> None:
        """Nothing is left behind."""


@cache
def emulator_version(emulator: Path) -> str:
    """As QEMU says it: 7.2.22."""
    said = subprocess.run([str(emulator), "--version"], capture_output=True, text=True, check=False).stdout.split()
    return said[2] if len(said) > 2 else "unknown"


def checked_cpu(cpu: str) -> str:
    """A CPU model by its name. Raises `UsageError` for what cannot be one."""
    if not all(c.isalnum() or c in "-_,.=" for c in cpu):
        raise UsageError("not a CPU model", got=cpu, expected="a name such as cortex-a76 or max,sme=off")
    return cpu


def find_emulator() -> Path:
    """QEMU for aarch64 programs. Raises `RunnerError` that names what to install."""
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
    if emulator is None:
        raise RunnerError(
            "the emulator is not installed", expected=EMULATORS[0], fix="apt-get install qemu-user-static"
        )
    return Path(emulator)


def make_qemu_runner(target: str) -> QemuRunner:
    """The runner of `qemu` or `qemu:CPU`. Raises `RunnerError` that names what to install or build, `UsageError` for a CPU."""
    cpu, emulator = checked_cpu(target.partition(":")[2] or DEFAULT_CPU), find_emulator()
    binary = find_arm_binary()
    if not is_portable(binary) and not SYSROOT.is_dir():
        raise RunnerError(
            "there is no aarch64 system to emulate",
            expected=SYSROOT,
            fix="apt-get install libc6-arm64-cross libstdc++6-arm64-cross",
        )
    return QemuRunner(cpu, emulator, binary)
