"""Targets by name: where a program can be made to run."""

from __future__ import annotations

from verifier.core.errors import UsageError
from verifier.core.extras import require_extra
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner, find_binary
from verifier.runner.official import OfficialRunner
from verifier.runner.protocol import Runner
from verifier.runner.qemu import make_qemu_runner
from verifier.runner.qemu_python import make_arm_python_runner
from verifier.runner.remote import OnTransfer

TARGETS = "local, official, native, qemu[:CPU], qemu-python[:CPU], ssh:[user@]host or adb[:serial]"


def no_transfer(what: str, done: int, whole: int) -> None:
    """Ignores transfers."""


def make_runner(target: str, on_transfer: OnTransfer = no_transfer) -> Runner:
    """The runner of a target; one on another machine is connected, and `on_transfer` is called while files are sent there.

    Raises `UsageError` for a target that is unknown, `RunnerError` for one that cannot be used.
    """
    kind, _, rest = target.partition(":")
    if target == "local":
        return LocalRunner()
    if target == "official":
        return OfficialRunner()
    if target == "native":
        return NativeRunner(find_binary())
    if kind == "qemu":
        return make_qemu_runner(target)
    if kind == "qemu-python":
        return make_arm_python_runner(target)
    if kind == "ssh" and rest:
        require_extra("ssh", "the target ssh")
        from verifier.runner.ssh import make_ssh_runner

        return make_ssh_runner(target, on_transfer)
    if kind == "adb":
        require_extra("adb", "the target adb")
        from verifier.runner.adb import make_adb_runner

        return make_adb_runner(target, on_transfer)
    raise UsageError("unknown target", got=target, expected=TARGETS, fix="give --target local")
