"""`python -m verifier.runner.native.phone` (`make phone`): `llava_main` for aarch64 with everything it needs, in one folder.

The folder brings its own loader and C library, so all that it asks of the machine is Linux for arm64: a phone's adb shell, a board with another
or an older C library, a container with nothing in it. Android's NDK is not needed. The system's part is Debian's, from the packages that the
cross compiler depends on; it lies in `lib` beside ExecuTorch's libraries, and the licences of all of it in `licences`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from verifier.core.command import command
from verifier.core.errors import RunnerError
from verifier.runner.native import ARM_BINARY, LOADER, PHONE, SOURCE
from verifier.runner.native.cmake import build, find_tool

SYSTEM = Path("/usr/aarch64-linux-gnu/lib")
"""Debian's libraries for aarch64, of the packages libc6-arm64-cross, libstdc++6-arm64-cross and libgcc-s1-arm64-cross."""
DOCUMENTS, COMMON = Path("/usr/share/doc"), Path("/usr/share/common-licenses")
TEXTS = ("GPL-3", "LGPL-2.1")
"""The licences that Debian's copyright files name and do not contain."""
INSIDE_EXECUTORCH = ("XNNPACK", "pthreadpool", "cpuinfo", "FP16", "FXdiv", "flatbuffers")
"""What is compiled into ExecuTorch's libraries: PyTorch's wheel has the licences. FlatCC's is that of flatbuffers, Apache 2.0."""
_PACKAGE = "apt-get install g++-aarch64-linux-gnu"
_START = """#!/bin/sh
# llava_main with the loader and the libraries beside it: sh run.sh --help
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
exec "$here/lib/ld-linux-aarch64.so.1" --library-path "$here/lib" "$here/llava_main" "$@"
"""


def make_phone(out: Path, binary: Path) -> Path:
    """Put the folder together from a built aarch64 `llava_main`, whole or not at all; `out`.

    Raises `RunnerError` for a library or a licence that is not found.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        made = Path(temporary) / out.name
        (made / "lib").mkdir(parents=True)
        shutil.copy(binary, made / "llava_main")
        system = _copy_libraries(binary, made / "lib")
        _copy_licences(binary.parent, system, made / "licences")
        (made / "run.sh").write_text(_START)
        for program in ("run.sh", "llava_main", LOADER):
            (made / program).chmod(0o755)
        files = sorted(path for path in made.rglob("*") if path.is_file())
        sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(made)}\n" for file in files)
        (made / "SHA256SUMS").write_text("".join(sums))
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    return out


def _copy_libraries(binary: Path, into: Path) -> list[Path]:
    """Everything that `llava_main` and its libraries ask for: ExecuTorch's from beside the binary, the rest from the system. The system's."""
    wanted, seen, system = [binary], {binary.name}, []
    while wanted:
        for name in _needed(wanted.pop()):
            if name in seen:
                continue
            seen.add(name)
            beside, below = binary.parent / name, SYSTEM / name
            if beside.is_file():
                wanted.append(beside)
                shutil.copy(beside, into / name)
            elif below.is_file():
                wanted.append(below)
                system.append(below.resolve())
                shutil.copy(below, into / name)
            else:
                raise RunnerError("a library is not found", got=name, where=f"{binary.parent}, {SYSTEM}", fix=_PACKAGE)
    if not (into.parent / LOADER).is_file():
        raise RunnerError("a library is not found", got=LOADER, where=SYSTEM, fix=_PACKAGE)
    return system


def _needed(library: Path) -> list[str]:
    """The names that an ELF file's dynamic section asks for."""
    readelf = find_tool("aarch64-linux-gnu-readelf", _PACKAGE)
    done = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunnerError("not a program for Linux", got=done.stderr.strip(), where=library)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout)


def _copy_licences(built: Path, system: Sequence[Path], into: Path) -> None:
    """The licence of each thing in the folder, and of which version it is."""
    into.mkdir()
    texts = {"stb_image": SOURCE / "third_party" / "stb" / "LICENSE"}
    texts["executorch"] = next(built.glob("executorch-*/*.dist-info/licenses/LICENSE"), built / "LICENSE")
    torch = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    for name in INSIDE_EXECUTORCH:
        texts[name] = next(torch.glob(f"torch-*.dist-info/licenses/third_party/{name}/LICENSE"), torch / name)
    packages = _packages(system)
    texts |= {package: DOCUMENTS / package / "copyright" for package in packages}
    texts |= {name: COMMON / name for name in TEXTS}
    for name, text in texts.items():
        if not text.is_file():
            raise RunnerError("a licence is not found", got=name, expected=text, fix="install what it belongs to again")
        shutil.copy(text, into / f"{name}.txt")
    lines = [
        f"{package} {version}, from Debian; its sources: {source}" for package, (version, source) in packages.items()
    ]
    lines.append(
        f"ExecuTorch {importlib.metadata.version('executorch')}, with {', '.join(INSIDE_EXECUTORCH)} and FlatCC (Apache 2.0)"
    )
    lines.append("stb_image 2.30, compiled into llava_main, as is libstdc++")
    (into / "README").write_text("\n".join(lines) + "\n")


def _packages(system: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Debian's packages of these files: version, and the source package with its version."""
    listed = subprocess.run(["dpkg", "-S", *system], capture_output=True, text=True, check=False).stdout
    packages: dict[str, tuple[str, str]] = {}
    for package in sorted({line.partition(":")[0] for line in listed.splitlines()}):
        form = "${Version}\t${source:Package} ${source:Version}"
        told = subprocess.run(["dpkg-query", "-W", "-f", form, package], capture_output=True, text=True, check=True)
        version, source = told.stdout.split("\t")
        packages[package] = (version, source)
    if not packages:
        raise RunnerError(
            "nobody knows which packages the libraries are of", where=SYSTEM, fix=f"on Debian: {_PACKAGE}"
        )
    return packages


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 made, 2 not."""
    parser = argparse.ArgumentParser(prog="python -m verifier.runner.native.phone", description=__doc__)
    parser.add_argument("--out", type=Path, default=PHONE, help="where the folder is to be (default: %(default)s)")
    options = parser.parse_args(arguments)
    made = make_phone(options.out.absolute(), build(ARM_BINARY.parent, arch="aarch64"))
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    print(f"{made}: {size / 1e6:.1f} MB; sh run.sh --help on the phone")
    return 0
