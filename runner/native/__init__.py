"""The `native` target: `llava_main`, the C++ runner built from `src` against ExecuTorch's wheel (`make native`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from verifier.core.errors import RunnerError
from verifier.core.python import cache_folder
from verifier.core.system import machine
from verifier.runner.process import run_child
from verifier.runner.protocol import Bundle, Result

_CLONE = Path(__file__).resolve().parents[2]
_BUILD = _CLONE / "build" if (_CLONE / "pyproject.toml").is_file() else cache_folder()
"""Where an installed package lies may be nobody's to write, and is replaced with the next version."""
BINARY = _BUILD / "native" / "llava_main"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
"""`e_machine` of the ELF specification."""
ARM_BINARY = _BUILD / "native-aarch64" / "llava_main"
PHONE = _BUILD / "phone"
"""The folder of `make phone`: `llava_main`, its libraries, and the loader and C library that start them."""
LOADER = "lib/ld-linux-aarch64.so.1"
SOURCE = Path(__file__).resolve().parent


def find_binary() -> Path:
    """The built runner: `LLAVA_MAIN` if it is set, else the one of `make native`. Raises `RunnerError` if there is none."""
    fix = "run python -m verifier.runner.native.build (in a clone make native; needs g++ 12 or newer), or set LLAVA_MAIN to a llava_main"
    path = _existing(Path(os.environ.get("LLAVA_MAIN", BINARY)), "the native runner is not built", fix)
    return _built_for(machine(), path)


def find_arm_binary() -> Path:
    """The same for aarch64: `LLAVA_MAIN_AARCH64`, or the one of `make native-arm`."""
    command = "python -m verifier.runner.native.build --arch aarch64"
    fix = f"run {command} (in a clone make native-arm; needs g++-aarch64-linux-gnu), or set LLAVA_MAIN_AARCH64 to a llava_main for aarch64"
    path = _existing(Path(os.environ.get("LLAVA_MAIN_AARCH64", ARM_BINARY)), "the aarch64 runner is not built", fix)
    return _built_for("aarch64", path)


def find_phone() -> Path | None:
    """`llava_main` in the folder of `make phone`, None if there is none. Raises `RunnerError` if another one was built since."""
    path = PHONE / "llava_main"
    if not path.is_file():
        return None
    if ARM_BINARY.is_file() and ARM_BINARY.read_bytes() != path.read_bytes():
        fix = "run python -m verifier.runner.native.phone again (in a clone make phone)"
        raise RunnerError("the phone's folder holds another llava_main than was built last", got=PHONE, fix=fix)
    return _built_for("aarch64", path)


def is_portable(binary: Path) -> bool:
    """Whether a `llava_main` lies in a folder that brings its own loader and C library."""
    return (binary.parent / LOADER).is_file()


def start_words(binary: str, *, portable: bool) -> tuple[str, ...]:
    """How a `llava_main` is started where it lies: by the loader in its folder, if it is portable."""
    if not portable:
        return (binary,)
    folder = binary.rpartition("/")[0]
    return (f"{folder}/{LOADER}", "--library-path", f"{folder}/lib", binary)


def _existing(path: Path, what: str, fix: str) -> Path:
    if not path.is_file():
        raise RunnerError(what, expected=path, fix=fix)
    return path


def _built_for(machine: str, path: Path) -> Path:
    """The path of a binary that is for an architecture, or none at all: a script may start one. Raises `RunnerError`."""
    with path.open("rb") as file:
        head = file.read(20)
    found = int.from_bytes(head[18:20], "little")
    if head.startswith(b"\x7fELF") and found != ELF_MACHINES.get(machine, found):
        names = {number: name for name, number in ELF_MACHINES.items()}
        got = names.get(found, f"machine {found} of ELF's list")
        raise RunnerError("llava_main is built for another architecture", got=got, expected=machine, where=path)
    return path


def bundle_command(binary: Path, sent: Path, back: Path) -> list[str]:
    """How `llava_main` is told to carry out a bundle."""
    return [*start_words(str(binary), portable=is_portable(binary)), f"--bundle={sent}", f"--result={back}"]


@dataclass(frozen=True)
class NativeRunner:
    """One process of the C++ runner per bundle."""

    binary: Path

    @property
    def name(self) -> str:
        """`native`."""
        return "native"

    @property
    def isa(self) -> str:
        """That of this machine."""
        return machine()

    @property
    def at_once(self) -> int:
        """One: the other core computes references."""
        return 1

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle; see `run_child` for what is an outcome and what an error."""
        return run_child(lambda sent, back: bundle_command(self.binary, sent, back), bundle, timeout_s=timeout_s)

    def close(self) -> None:
        """Nothing is left behind."""
