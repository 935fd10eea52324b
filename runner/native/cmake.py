"""`python -m verifier.runner.native.build [--out FOLDER]`: build `llava_main` against the installed ExecuTorch wheel (`make native`)."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from verifier.core import upstream
from verifier.core.command import command
from verifier.core.errors import RunnerError
from verifier.runner.native import ARM_BINARY, BINARY, SOURCE

_TAIL = 3000


def find_tool(name: str, package: str) -> Path:
    """A tool beside this interpreter, or on the path. Raises `RunnerError` that names what to install."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = beside if beside.is_file() else shutil.which(name)
    if found is None:
        raise RunnerError(f"{name} is not installed", fix=f"install it: {package}")
    return Path(found)


def _foreign_wheel(arch: str, folder: Path) -> Path:
    """The wheel of the installed ExecuTorch's version for another architecture, unpacked; fetched once."""
    version = importlib.metadata.version("executorch")
    site = folder / f"executorch-{version}"
    if not site.is_dir():
        words = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        words += ["--platform", f"manylinux_2_28_{arch}", "--python-version", "3.11", "--dest", str(folder)]
        _run([*words, f"executorch=={version}"], "the wheel of ExecuTorch cannot be fetched", folder)
        wheel = next(folder.glob(f"executorch-{version}-*_{arch}.whl"))
        partial = Path(tempfile.mkdtemp(dir=folder))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(site)
    config = site / "executorch" / upstream.CMAKE_PACKAGE.path
    if not config.is_dir():
        raise RunnerError(
            f"the wheel for {arch} has no CMake package", where=site, expected=upstream.requirement("executorch")
        )
    return config


def _run(words: Sequence[object], what: str, where: Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-_TAIL:]
        raise RunnerError(what, got=said, where=where, fix="see its first error")


def build(out: Path = BINARY.parent, *, arch: str | None = None, source: Path = SOURCE) -> Path:
    """Build into a folder, again only what changed; the path of the binary. `arch` cross-compiles; `source` holds another copy of
    the sources.

    Raises `RunnerError` with the compiler's words, or with what to install.
    """
    cmake, ninja = find_tool("cmake", "pip install 'cmake>=3.28'"), find_tool("ninja", "pip install ninja")
    out.mkdir(parents=True, exist_ok=True)
    words: list[object] = [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", source, "-B", out]
    if arch is None:
        find_tool("g++", "apt-get install g++ (12 or newer)")
        words.append(f"-Dexecutorch_DIR={upstream.CMAKE_PACKAGE.resolve()}")
    else:
        compiler = find_tool(f"{arch}-linux-gnu-g++", f"apt-get install g++-{arch}-linux-gnu")
        words += [f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}"]
        words.append(f"-Dexecutorch_DIR={_foreign_wheel(arch, out)}")
    _run(words, "llava_main cannot be configured", out)
    _run([cmake, "--build", out], "llava_main cannot be built", out)
    return out / BINARY.name


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 built, 2 not."""
    parser = argparse.ArgumentParser(prog="python -m verifier.runner.native.build", description="Build llava_main.")
    parser.add_argument("--arch", choices=("aarch64",), help="cross-compile (default: for this machine)")
    parser.add_argument("--out", type=Path, help=f"build folder (default: {BINARY.parent}, {ARM_BINARY.parent})")
    options = parser.parse_args(arguments)
    print(build(options.out or (ARM_BINARY if options.arch else BINARY).parent, arch=options.arch))
    return 0
