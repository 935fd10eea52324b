"""Stand-ins for CUDA's libraries, so that torch for aarch64 can be loaded where nothing of CUDA is called.

PyPI's torch for aarch64 is linked against 2.5 GB of them, and not all are published for that architecture. A loader wants their
names, their versions and their symbols; what it gets here are functions that return 0.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from verifier.core.errors import RunnerError

COMPILER, READELF = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-readelf"


def make_stubs(libraries: Path, system: Path) -> list[str]:
    """Write into the folder `libraries` what its libraries want and neither it nor `system` has; the names that were written.

    Raises `RunnerError` that names what to install.
    """
    ours = sorted(libraries.glob("*.so*"))
    have = {path.name for path in (*ours, *system.rglob("*.so*"))}
    wanted: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    defined: set[str] = set()
    undefined: set[str] = set()
    for path in ours:
        for name in _needed(path):
            if name not in have:
                wanted[name][""] |= set()
        files = _version_files(path)
        for symbol, version, here in _symbols(path):
            if here:
                defined.add(symbol)
            elif version:
                if files.get(version, "") in wanted:
                    wanted[files[version]][version].add(symbol)
            else:
                undefined.add(symbol)
    system_has = {s for path in system.rglob("*.so*") if path.is_file() for s, _, here in _symbols(path) if here}
    if wanted:
        next(iter(wanted.values()))[""] |= undefined - defined - system_has
    for name, versions in wanted.items():
        _compile(libraries / name, versions)
    return sorted(wanted)


def _read(*words: object) -> list[str]:
    try:
        done = subprocess.run([READELF, "-W", *map(str, words)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunnerError(f"{READELF} is not installed", fix="apt-get install gcc-aarch64-linux-gnu") from error
    return done.stdout.splitlines()


def _needed(path: Path) -> list[str]:
    return [line.split("[")[1].rstrip("]") for line in _read("-d", path) if "(NEEDED)" in line]


def _version_files(path: Path) -> dict[str, str]:
    """The library that a needed version comes from: `.gnu.version_r` lists `File: X` and below it `Name: V`."""
    found: dict[str, str] = {}
    file = ""
    for line in _read("-V", path):
        words = line.split()
        if "File:" in words:
            file = words[words.index("File:") + 1]
        elif "Name:" in words and file:
            found[words[words.index("Name:") + 1]] = file
    return found


def _symbols(path: Path) -> list[tuple[str, str, bool]]:
    """(name, version, whether it is defined here) of global dynamic symbols; weak undefined ones need nobody."""
    found = []
    for line in _read("--dyn-syms", path):
        words = line.split()
        if len(words) < 8 or words[4] not in ("GLOBAL", "WEAK", "UNIQUE"):
            continue
        name, _, version = words[7].replace("@@", "@").partition("@")
        here = words[6] != "UND"
        if here or words[4] != "WEAK":
            found.append((name, version, here))
    return found


def _compile(path: Path, versions: dict[str, set[str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, script = Path(name) / "stub.c", Path(name) / "versions"
        symbols = sorted(set().union(*versions.values()))
        source.write_text("".join(f"long {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        nodes = [f"{v} {{ {' '.join(f'{s};' for s in sorted(found))} }};" for v, found in versions.items() if v]
        script.write_text("\n".join(nodes) + "\n")
        words = [COMPILER, "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}", "-o", path, source]
        words += [f"-Wl,--version-script={script}"] if nodes else []
        try:
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunnerError(f"{COMPILER} is not installed", fix="apt-get install gcc-aarch64-linux-gnu") from error
        if done.returncode:
            raise RunnerError("a stand-in for a library cannot be made", got=done.stderr[-2000:], where=path.name)
