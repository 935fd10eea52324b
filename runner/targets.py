"""Targets by name: where a program can be made to run."""

from __future__ import annotations

from verifier.core.errors import UsageError
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner, find_binary
from verifier.runner.protocol import Runner
from verifier.runner.qemu import make_qemu_runner
from verifier.runner.qemu_python import make_arm_python_runner
from verifier.runner.remote import Told

TARGETS = "local, native, qemu[:CPU], qemu-python[:CPU], ssh:[user@]host or adb[:serial]"


def silent(what: str, done: int, whole: int) -> None:
    """Hears of transfers and says nothing."""


def make_runner(target: str, told: Told = silent) -> Runner:
    """The runner of a target; one on another machine is connected, and `told` hears of what is sent there.

    Raises `UsageError` for a target that is unknown, `RunnerError` for one that cannot be used.
    """
    kind, _, rest = target.partition(":")
    if target == "local":
        return LocalRunner()
    if target == "native":
        return NativeRunner(find_binary())
    if kind == "qemu":
        return make_qemu_runner(target)
    if kind == "qemu-python":
        return make_arm_python_runner(target)
    if kind == "ssh" and rest:
        from verifier.runner.ssh import make_ssh_runner

        return make_ssh_runner(target, told)
    if kind == "adb":
        from verifier.runner.adb import make_adb_runner

        return make_adb_runner(target, told)
    raise UsageError("unknown target", got=target, expected=TARGETS, fix="give --target local")
