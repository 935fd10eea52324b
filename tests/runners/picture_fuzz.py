"""`python -m tests.runners.picture_fuzz [COUNT]` (`make fuzz-pictures`): damaged JPEG and PNG files against `llava_main`'s reader, under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from verifier.measures.drawing import FILES, drawn
from verifier.runner.native import SOURCE

_SOURCES = ("orientation", "picture", "picture_file", "resize", "stb")
_KINDS = (
    "JPEG, orientation 6",
    "PNG, orientation 5",
    "PNG, orientation 6 in XMP",
    "PNG, palette with transparency",
    "PNG, one bit",
)


def fuzz(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Read `count` damaged files in a build of the reader with AddressSanitizer and UndefinedBehaviorSanitizer.

    How many were read and how many refused. Raises `RuntimeError` with the sanitizer's words.
    """
    done = subprocess.run(
        [_build(folder), str(count), str(seed), *_seeds(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[:4000] or f"exit status {done.returncode}")
    readable, refused = map(int, done.stdout.split())
    return {"read": readable, "refused": refused}


def _build(folder: Path) -> Path:
    """The harness and the reader's own sources, in one program."""
    compiler, program = shutil.which("g++"), folder / "picture_fuzz"
    if compiler is None:
        raise RuntimeError("g++ is not installed")
    source = SOURCE / "src"
    words = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fwrapv",
        "-w",
    ]
    words += ["-I", str(source), "-I", str(SOURCE / "third_party" / "stb"), "-o", str(program)]
    words += [str(Path(__file__).with_suffix(".cpp")), *(str(source / f"{name}.cpp") for name in _SOURCES)]
    subprocess.run(words, check=True)
    return program


def _seeds(folder: Path) -> list[str]:
    """Small sound files of every kind that is read."""
    for number, kind in enumerate(_KINDS):
        FILES[kind](folder / f"seed{number}")
    for number, options in enumerate(
        ({"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_rows": 1})
    ):
        drawn(48, 32).save(folder / f"seed_{number}.jpg", **options)
    for mode in ("L", "CMYK"):
        drawn(48, 32).convert(mode).save(folder / f"seed_{mode}.jpg")
    Image.effect_noise((40, 30), 50).save(folder / "seed_grey.png", bits=4)
    return [str(path) for path in sorted(folder.glob("seed*"))]


def main() -> int:
    """Command line; returns the exit status: 0, or 1 with the sanitizer's words."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(fuzz(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 20000))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
