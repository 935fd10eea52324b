"""What differs between operating systems: processes and their memory, libraries, names of machines. No other module asks which system this is.

Linux and macOS are known. Where a function has a branch for each, tests run both by substitution (tests/unit/test_system.py);
what only a Mac can show is in docs/platforms.md. No heavy imports: children and the plugin load this.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
ARM = "aarch64"
"""What phones are, and Macs with Apple silicon."""
_MACHINES = {"arm64": ARM, "amd64": "x86_64"}
_POLL_S = 0.02
CPUINFO = Path("/proc/cpuinfo")
SYSCTL_FEATURES = {
    "FEAT_FP16": "fphp",
    "FEAT_DotProd": "asimddp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}
"""Names of Arm's extensions as `sysctl hw.optional.arm` of macOS has them, and as /proc/cpuinfo of Linux has."""


def is_linux() -> bool:
    """Whether the system has Linux's own calls."""
    return platform.system() == "Linux"


def is_mac() -> bool:
    """Whether this is macOS."""
    return platform.system() == "Darwin"


def machine() -> str:
    """The architecture by Linux's name: `aarch64` on a Mac with Apple silicon too, `x86_64`."""
    name = platform.machine()
    return _MACHINES.get(name.lower(), name)


def library(name: str) -> str:
    """The file name of a shared library: `libx.so`, `libx.dylib`."""
    return f"{name}.{'dylib' if is_mac() else 'so'}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_memory_bytes() -> int:
    """Memory of this machine."""
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(sysctl("hw.memsize") or 0)


def peak_bytes_of(usage: resource.struct_rusage) -> int:
    """Peak memory of a process: `ru_maxrss` counts kilobytes on Linux, bytes on macOS."""
    return usage.ru_maxrss if is_mac() else usage.ru_maxrss * 1024


def sysctl(name: str) -> str:
    """A setting of macOS's kernel, or all below a name, a line each; nothing where there is no such setting."""
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["sysctl", name] if name.endswith(".arm") else ["sysctl", "-n", name]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""


def cpu_model() -> str:
    """What the kernel says of the first core: vendor, family, model, stepping; on Arm implementer, part, revision; on macOS its brand."""
    if not CPUINFO.is_file():
        return (sysctl("machdep.cpu.brand_string") if is_mac() else "") or platform.processor()
    said = dict(line.split(":", 1) for line in CPUINFO.read_text().split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in said.items()}
    wanted = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    return " ".join(facts[key] for key in wanted if key in facts)


def cpu_extensions() -> list[str]:
    """Extensions of the first core by Linux's names; empty where the system does not tell."""
    if CPUINFO.is_file():
        lines = CPUINFO.read_text().splitlines()
        return next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    lines = sysctl("hw.optional.arm").splitlines() if is_mac() else []
    have = {line.partition(":")[0].rpartition(".")[2] for line in lines if line.endswith(": 1")}
    return [name for feature, name in SYSCTL_FEATURES.items() if feature in have]


def can_fork() -> bool:
    """Whether a process that has loaded torch may fork: frameworks of macOS end the fork of a process that has used them."""
    return not is_mac()


def die_with_parent() -> None:
    """Have this process end when the one that started it ends: nobody would read the result."""
    if is_linux():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def limit_memory(process: int, limit_bytes: int) -> bool:
    """Let a process have so much writable memory of its own, mapped weights not counted. Whether the system does so: macOS limits nobody."""
    if not hasattr(resource, "prlimit"):
        return False
    with suppress(ProcessLookupError, PermissionError):  # it is gone already, or the system lets nobody set limits
        resource.prlimit(process, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        return True
    return False


def return_freed() -> bool:
    """Have glibc give back what lies free between blocks in use; by itself it does so at the end of its heap alone. Whether it could.

    Between layers of a large model, that is: holes were 3.3 GiB of 10.3 in the verification of a 7B, whose attention matrices are 21 MB. To
    have every such block mapped by itself (`M_MMAP_THRESHOLD`) leaves no holes either, but doubled the page faults, and took 214 s more of
    a 7B's verification.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return False
    return bool(trim(0))


def await_end(process: int, *, every_s: float, look: Callable[[], None]) -> tuple[int, resource.struct_rusage]:
    """Wait for the end of a child, and call `look` every so often. Its wait status, and what it used."""
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(process)
        try:
            while not select.select([handle], [], [], every_s)[0]:
                look()
        finally:
            os.close(handle)
        _, status, usage = os.wait4(process, 0)
        return status, usage
    looked = time.monotonic()
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return status, usage
        if time.monotonic() - looked >= every_s:
            look()
            looked = time.monotonic()
        time.sleep(_POLL_S)


@contextmanager
def scratch_file() -> Iterator[tuple[IO[bytes], str]]:
    """A file for another process of this user to write to: open for reading, and its path. On Linux it lies in memory, so a full disk does not matter."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("errors"), "rb") as file:
            yield file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile("rb", prefix="verifier-") as file:
        yield file, file.name
