"""The wheel that others install: what is in it, and that it works where nothing of this repository is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("wheel")


def _copy(source: Path) -> None:
    """What git knows of the tree, links as links."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and ((ROOT / name).is_file() or (ROOT / name).is_symlink()):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)


@pytest.fixture(scope="session")
def wheel(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Built from a copy of the tree, so that no build folder of it gets in."""

    def build(folder: Path) -> None:
        source = folder / "source"
        _copy(source)
        words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder), str(source)]
        subprocess.run(words, check=True)
        shutil.rmtree(source)

    return next(once("wheel", build).glob("*.whl"))


def test_wheel_holds_the_golden_data_and_what_reports_are_made_of(wheel: Path) -> None:
    """Model, program, tolerances, images, page, schema, the native runner's sources; the plugin's entry point; no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "verifier = verifier.pytest_plugin" in archive.read(entry).decode()
    tiny = "verifier/embedded/llava_tiny"
    wanted = {f"{tiny}/{name}" for name in ("model.safetensors", "llava_tiny.pte", "golden.json", "tolerances.json")}
    wanted |= {f"verifier/report/report.{kind}" for kind in ("html.j2", "css", "js", "schema.json")}
    wanted |= {
        f"{tiny}/images/pair_base.png",
        "verifier/runner/native/CMakeLists.txt",
        "verifier/runner/native/src/main.cpp",
        "verifier/runner/native/third_party/stb/stb_image.h",
        "verifier/runner/native/third_party/stb/LICENSE",
    }
    wanted |= {"verifier/compare.py", "verifier/report/__main__.py", "verifier/comparison/compare.py"}
    assert wanted <= names
    assert not any(name.startswith(("tests/", "docs/", "build/")) for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "verifier"
    }  # nothing that others may call theirs


def test_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """The links to runner/ and golden/ are folders in it."""
    _copy(tmp_path / "source")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    words = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(words, cwd=tmp_path / "source", check=True, capture_output=True)
    made = next(tmp_path.glob("*.tar.gz"))
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        str(made),
    ]
    subprocess.run(words, check=True)
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as again:
        assert set(again.namelist()) == set(archive.namelist())


def test_unpacked_wheel_finds_what_belongs_to_it(wheel: Path, tmp_path: Path) -> None:
    """Its own runner and golden data, started from a folder with files of those names; what it builds goes to the user's cache."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    project = tmp_path / "project"
    project.mkdir()
    for name in ("runner", "golden", "tests", "numpy"):
        (project / f"{name}.py").write_text("1 / 0")
    told = "import verifier.families.checkpoint as c, verifier.runner.native as n; print(c.EMBEDDED, n.BINARY, sep=chr(10))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": "/cache"}
    words = [sys.executable, "-P", "-c", told]
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(tmp_path / "site" / "verifier" / "embedded" / "llava_tiny"),
        "/cache/llava-verifier/native/llava_main",
    ]
    for command in ("test_pte", "export_llava", "golden", "runner", "runner.llava_main", "runner.native.build"):
        words = [sys.executable, "-m", f"verifier.{command}", "--help"]
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.startswith(f"usage: python -m verifier.{command} "), done.stderr


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """A new virtual environment, the wheel and its dependencies, an empty folder: `pytest --pte llava.pte`."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(EMBEDDED_PTE, empty / "llava.pte")
    shutil.copy(EMBEDDED_PTE.with_name("llava_tiny.manifest.json"), empty / "llava.manifest.json")
    words = [python, "-m", "pytest", "--pte", "llava.pte", "-n", "2", "-q", "--pte-report", "report"]
    done = subprocess.run(words, cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads((empty / "report" / "report.json").read_text())
    assert (report["verdict"], report["partial"]) == ("pass", False)
    helped = subprocess.run([python, "-m", "pytest", "--help"], cwd=empty, capture_output=True, text=True, check=True)
    assert "--pte-report" in helped.stdout
    assert "pte_checks" in helped.stdout
