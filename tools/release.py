"""`make release`: wheel and source distribution of this commit into build/release, checked, with release notes and SHA256SUMS.

The same commit gives the same bytes: files come from git with fixed modes, times are those of the commit, archives are written in order. With `--install
PYTHON` the wheel is installed for that Python and verifies the embedded program in an empty folder; several may be given.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _said(*words: str, cwd: Path = ROOT) -> str:
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=True).stdout


def copy_tree(source: Path) -> None:
    """What git knows of this tree, with modes that no umask decides; links stay links."""
    for name in filter(None, _said("git", "ls-files", "-z").split("\0")):
        place, target = ROOT / name, source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place, target, follow_symlinks=False)
        if not target.is_symlink():
            target.chmod(0o755 if place.stat().st_mode & stat.S_IXUSR else 0o644)


def build(out: Path, epoch: int) -> list[Path]:
    """Wheel and source distribution of this tree into a folder; times are `epoch`, in seconds."""
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        source, made = Path(name) / "source", Path(name) / "dist"
        copy_tree(source)
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
        words = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, umask=0o022)
        if done.returncode:  # setuptools warns at length about what is meant so
            print(done.stdout + done.stderr, file=sys.stderr)
            done.check_returncode()
        out.mkdir(parents=True, exist_ok=True)
        found = []
        for path in sorted(made.iterdir()):
            target = out / path.name
            if path.suffix == ".gz":
                target.write_bytes(fixed_archive(path.read_bytes(), epoch))
            else:
                shutil.copyfile(path, target)
            found.append(target)
        return found


def fixed_archive(data: bytes, epoch: int) -> bytes:
    """A .tar.gz with its members in order, all of one time and nobody's."""
    held = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as old,
        gzip.GzipFile(fileobj=held, mode="wb", mtime=epoch, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            content = old.extractfile(member) if member.isfile() else None
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & stat.S_IXUSR else 0o644
            member.pax_headers = {}
            new.addfile(member, content)
    return held.getvalue()


def check(paths: Sequence[Path]) -> None:
    """Metadata by twine, contents of the wheel by check-wheel-contents. Raises `CalledProcessError`."""
    subprocess.run([sys.executable, "-P", "-m", "twine", "check", "--strict", *map(str, paths)], check=True)
    wheels = [str(path) for path in paths if path.suffix == ".whl"]
    subprocess.run([sys.executable, "-P", "-m", "check_wheel_contents", *wheels], check=True)


def notes(version: str) -> str:
    """The release notes from the fragments, as towncrier writes them; nothing is changed."""
    return _said(sys.executable, "-P", "-m", "towncrier", "build", "--draft", "--version", version)


def install(wheel: Path, python: str) -> None:
    """A new environment of a Python, the wheel with its dependencies, an empty folder: the gate as tests. Raises `CalledProcessError`."""
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        folder, empty = Path(name) / "env", Path(name) / "empty"
        empty.mkdir()
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        inside = str(folder / "bin" / "python")
        begun = time.monotonic()
        subprocess.run(
            [inside, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True
        )
        took_s = time.monotonic() - begun
        shutil.copy(ROOT / "golden" / "llava_tiny" / "llava_tiny.pte", empty / "llava.pte")
        words = [inside, "-m", "pytest", "-q", "--pte", "llava.pte"]
        subprocess.run(words, cwd=empty, check=True, env=os.environ | {"PYTHONPATH": ""})
        size = _said("du", "-sm", str(folder)).split()[0]
        print(f"{python}: verified in an empty folder; {size} MB, installed in {took_s:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "release")
    parser.add_argument(
        "--install", action="append", default=[], metavar="PYTHON", help="try the wheel with this Python, too"
    )
    parser.add_argument("--dirty", action="store_true", help="build although files differ from the commit")
    options = parser.parse_args(arguments)
    changed = _said("git", "status", "--porcelain")
    if changed and not options.dirty:
        print(f"there are changes that no commit has, so nobody could build this again:\n{changed}", file=sys.stderr)
        return 2
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    epoch = int(_said("git", "log", "-1", "--format=%ct"))
    shutil.rmtree(options.out, ignore_errors=True)
    paths = build(options.out, epoch)
    check(paths)
    (options.out / "NOTES.md").write_text(notes(version))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    (options.out / "SHA256SUMS").write_text(sums)
    print(sums, end="")
    for python in options.install:
        install(next(path for path in paths if path.suffix == ".whl"), python)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
