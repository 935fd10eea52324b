"""The wheel that others install: what is in it, and that it works where nothing of this repository is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from tools.release import build, check, fixed_archive, notes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("wheel")
EPOCH = 1_793_534_400
"""1 November 2026."""


@pytest.fixture(scope="session")
def release(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with wheel and source distribution, as `make release` builds them from what git knows."""
    return once("release", lambda folder: print(build(folder, EPOCH)))


@pytest.fixture(scope="session")
def wheel(release: Path) -> Path:
    """The wheel alone."""
    return next(release.glob("*.whl"))


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


def test_a_release_is_the_same_bytes_again(release: Path, tmp_path: Path) -> None:
    """Under another umask, at another time, in another folder; the wheel comes from the source distribution. Both pass the checks of a release, which
    find a broken one."""
    before = os.umask(0o077)
    try:
        again = build(tmp_path / "again", EPOCH)
    finally:
        os.umask(before)
    assert {path.name: path.read_bytes() for path in again} == {p.name: p.read_bytes() for p in release.iterdir()}
    check(again)
    with zipfile.ZipFile(again[0] if again[0].suffix == ".whl" else again[1]) as archive:
        assert {info.date_time[:3] for info in archive.infolist()} == {(2026, 11, 1)}
        assert {info.external_attr >> 16 & 0o777 for info in archive.infolist()} <= {0o644, 0o755, 0o664}
    broken = tmp_path / again[0].name
    broken.write_bytes(again[0].read_bytes()[:5000])
    with pytest.raises(subprocess.CalledProcessError):
        check([broken])


def test_the_order_of_an_archive_does_not_matter() -> None:
    """Nor its times and owners; a link stays one."""
    made = []
    for names, seconds in ((("a", "b"), 1), (("b", "a"), 2)):
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid, member.uname = 1, seconds, seconds, f"user{seconds}"
                archive.addfile(member, io.BytesIO(name.encode()))
            link = tarfile.TarInfo("link")
            link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "a", seconds
            archive.addfile(link)
        made.append(fixed_archive(held.getvalue(), EPOCH))
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        assert [(m.name, m.mtime, m.uid, m.issym()) for m in archive] == [
            ("a", EPOCH, 0, False),
            ("b", EPOCH, 0, False),
            ("link", EPOCH, 0, True),
        ]


def test_notes_come_from_the_fragments() -> None:
    """Every fragment's first words are in them; with none there is nothing to say."""
    said = " ".join(notes("9.9.9").split())
    fragments = [path for path in (ROOT / "changelog.d").glob("*.md") if path.name != "README.md"]
    for path in fragments:
        assert " ".join(path.read_text().split())[:60] in said, path.name
    assert "9.9.9" in said


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


def dry_run(wheel: Path) -> subprocess.CompletedProcess[str]:
    """What pip would do to install a wheel into this environment without an index; nothing is changed."""
    words = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", "-", str(wheel)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"PIP_NO_INPUT": "1"})


def test_wheel_changes_nothing_beside_it(wheel: Path, tmp_path: Path) -> None:
    """In an environment with executorch, torch and transformers, pip would install the wheel alone. One that asks for another version of them is seen."""
    done = dry_run(wheel)
    assert done.returncode == 0, done.stderr
    assert {one["metadata"]["name"] for one in json.loads(done.stdout)["install"]} <= {"llava-verifier"}
    pinned = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(pinned, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("/METADATA"):
                assert b"executorch>=1.4.1" in data
                data = data.replace(b"executorch>=1.4.1", b"executorch==1.4.1").replace(b"Version: 0.", b"Version: 99.")
            new.writestr(info, data)
    refused = dry_run(pinned.rename(tmp_path / wheel.name.replace("-0.", "-99.")))
    assert refused.returncode != 0
    assert "executorch==1.4.1" in refused.stderr


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
