"""The branches of `verifier.core.system` that this machine does not take, by substitution; docs/platforms.md says what only a Mac can show."""

from __future__ import annotations

import ast
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE
from verifier.core import system
from verifier.core.upstream import LLAMA_KERNELS
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call

SYSCTL = """hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_SME: 1
"""
"""Lines in the form that macOS prints."""


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Mac as far as Python's standard library tells: no pidfd, no memfd, no prlimit, no affinity, no /proc."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(system, "CPUINFO", tmp_path / "none")
    for module, name in (
        (os, "pidfd_open"),
        (os, "memfd_create"),
        (os, "sched_getaffinity"),
        (resource, "prlimit"),
    ):
        monkeypatch.delattr(module, name)
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "sysctl"
    lines = SYSCTL.replace("\n", "\\n")
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in\n"hw.optional.arm") printf "{lines}";;\n"-n machdep.cpu.brand_string") echo "Apple M4";;\n'
        '"-n hw.memsize") echo 17179869184;;\n*) exit 1;;\nesac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.usefixtures("mac")
def test_a_mac_is_arm_by_the_name_of_linux() -> None:
    """Targets, reports and calibration know one name for an architecture."""
    assert system.machine() == system.ARM
    assert system.cpu_model() == "Apple M4"
    assert system.cpu_extensions() == ["fphp", "asimddp", "sme"]
    assert system.cores() == os.cpu_count()
    assert system.library("libx") == "libx.dylib"
    assert not system.can_fork()


def test_names_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `uname -m` says on Linux; what is not known stays as it is."""
    for said, name in {
        "x86_64": "x86_64",
        "AMD64": "x86_64",
        "arm64": "aarch64",
        "aarch64": "aarch64",
        "riscv64": "riscv64",
    }.items():
        monkeypatch.setattr(platform, "machine", lambda said=said: said)
        assert system.machine() == name


def test_model_and_extensions_of_an_arm_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/proc/cpuinfo of arm64 has other keys than that of x86."""
    monkeypatch.setattr(system, "CPUINFO", tmp_path / "cpuinfo")
    system.CPUINFO.write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\nCPU revision\t: 1\n\nprocessor\t: 1\n"
    )
    assert system.cpu_model() == "0x41 0xd40 1"
    assert system.cpu_extensions() == ["fp", "asimd", "asimddp", "i8mm"]


def test_memory_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ru_maxrss` has another unit on macOS: what this process used is some 100 MB, not 100 GB or 100 kB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    here = system.peak_bytes_of(usage)
    assert 50e6 < here < system.physical_memory_bytes() < 1e14
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert system.peak_bytes_of(usage) * 1024 == here


@pytest.mark.usefixtures("mac")
def test_memory_of_a_machine_without_a_count_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's setting then."""
    monkeypatch.setattr(os, "sysconf_names", {})
    assert system.physical_memory_bytes() == 16 << 30


@pytest.mark.parametrize("kind", ["here", "mac"])
@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"], ids=["exit", "kill"])
def test_the_end_of_a_child(kind: str, ending: str, request: pytest.FixtureRequest) -> None:
    """Status, usage, and a look at the caller's pace meanwhile."""
    child = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; {ending}"])
    if kind == "mac":
        request.getfixturevalue("mac")
    looks: list[float] = []
    status, usage = system.await_end(child.pid, every_s=0.1, look=lambda: looks.append(time.monotonic()))
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == (3 if ending == "exit 3" else -signal.SIGKILL)
    assert usage.ru_maxrss > 0
    assert 2 <= len(looks) <= 5


@pytest.mark.parametrize("kind", ["here", "mac"])
def test_a_file_for_what_a_child_says(kind: str, request: pytest.FixtureRequest) -> None:
    """Another process finds it by its path; nothing of it stays."""
    if kind == "mac":
        request.getfixturevalue("mac")
    with system.scratch_file() as (file, path):
        subprocess.run(["/bin/sh", "-c", f"echo said >> {path}"], check=True)
        assert file.read() == b"said\n"
    assert not Path(path).exists()


def test_memory_of_another_process_is_limited() -> None:
    """Whether it was is said."""
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        assert system.limit_memory(child.pid, 1 << 30)
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == (1 << 30, 1 << 30)
        child.kill()
    assert not system.limit_memory(child.pid, 1 << 30)


@pytest.mark.usefixtures("mac")
def test_a_system_that_limits_nobody_says_so() -> None:
    """No exception."""
    assert not system.limit_memory(os.getpid(), 1 << 30)


ORPHAN = """
import platform, subprocess, sys, time
if sys.argv[1] == "mac":
    platform.system = lambda: "Darwin"
from verifier.core.system import die_with_parent
die_with_parent()
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["here", "mac"])
def test_a_child_ends_with_the_process_that_started_it(kind: str, tmp_path: Path) -> None:
    """By the system's own call, or by a look once a second."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, {str(script)!r}, {kind!r}], stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = int(subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True, env=environment).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    said = Path(f"/proc/{process}/stat")
    return not (said.is_file() and ") Z " in said.read_text())


def test_local_runs_without_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process for each bundle where torch must not be forked: the same answer."""
    bundle = Bundle(EMBEDDED_PTE, (Call("token_embedding", (np.array([[1, 2, 3]], np.int64),)),))
    forked = LocalRunner().run(bundle, timeout_s=120)
    monkeypatch.setattr("verifier.runner.local.can_fork", lambda: False)
    started = LocalRunner().run(bundle, timeout_s=120)
    assert (forked.outcome, started.outcome) == ("ok", "ok")
    assert np.array_equal(forked.outputs[0], started.outputs[0])


def test_kernels_are_looked_for_by_the_name_that_the_system_gives() -> None:
    """macOS's wheel of executorch 1.5.1 has libcustom_ops_aot_lib.dylib where Linux's has .so."""
    assert LLAMA_KERNELS.path == system.library("extension/llm/custom_ops/libcustom_ops_aot_lib")


ONLY_LINUX = {"memfd_create", "pidfd_open", "prlimit", "ru_maxrss", "malloc_trim", "prctl", "sched_getaffinity"}


def test_no_other_module_asks_which_system_this_is() -> None:
    """Names that one system alone has are in one module; faults are the bench's own, which runs on Linux."""
    root = Path(__file__).parents[2]
    found = []
    for path in sorted([*root.glob("verifier/**/*.py"), *root.glob("runner/**/*.py")]):
        if path.name == "system.py" or "faults" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and (
                node.attr in ONLY_LINUX
                or (isinstance(node.value, ast.Name) and node.value.id == "platform" and node.attr == "machine")
            ):
                found.append(f"{path.relative_to(root)}:{node.lineno} {node.attr}")
    assert found == []
