"""`python -m runner.native.build [--out FOLDER]`: build `llava_main` against the installed ExecuTorch wheel (`make native`)."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from runner.native import BINARY
from verifier.errors import RunnerError, VerifierError

SOURCE = Path(__file__).resolve().parent
_TAIL = 3000


def _tool(name: str, package: str) -> Path:
    """A tool beside this interpreter, or on the path. Raises `RunnerError` that names what to install."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = beside if beside.is_file() else shutil.which(name)
    if found is None:
        raise RunnerError(f"{name} is not installed", fix=f"install it: {package}")
    return Path(found)


def _wheel() -> Path:
    spec = importlib.util.find_spec("executorch")
    places = list(spec.submodule_search_locations or []) if spec else []
    config = next((Path(p) / "share" / "cmake" for p in places if (Path(p) / "share" / "cmake").is_dir()), None)
    if config is None:
        raise RunnerError("the installed executorch has no CMake package", expected="executorch 1.5.1 from PyPI")
    return config


def build(out: Path = BINARY.parent) -> Path:
    """Build into a folder, again only what changed; the path of the binary. Raises `RunnerError` with the compiler's words."""
    cmake, ninja = _tool("cmake", "pip install 'cmake>=3.28'"), _tool("ninja", "pip install ninja")
    _tool("g++", "apt-get install g++ (12 or newer)")
    out.mkdir(parents=True, exist_ok=True)
    configure = [
        cmake,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-Dexecutorch_DIR={_wheel()}",
        "-S",
        SOURCE,
        "-B",
        out,
    ]
    for words in (configure, [cmake, "--build", out]):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr)[-_TAIL:]
            raise RunnerError("llava_main cannot be built", got=said, where=out, fix="see the compiler's first error")
    return out / BINARY.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 built, 2 not."""
    parser = argparse.ArgumentParser(prog="python -m runner.native.build", description="Build llava_main.")
    parser.add_argument("--out", type=Path, default=BINARY.parent)
    try:
        print(build(parser.parse_args(arguments).out))
    except VerifierError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
