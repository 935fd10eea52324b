"""Versions that were never tried: a warning if all names are there, exit status 2 if one is not."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.core import upstream, versions
from verifier.core.errors import UpstreamError
from verifier.core.upstream import SEEN, Name

ROOT = Path(__file__).parents[2]
FUTURE = {"executorch": "1.9.0", "transformers": "6.0.0+local"}


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two packages are newer than this verifier. Returns the cache's folder."""
    monkeypatch.setattr(versions, "version", lambda name: FUTURE.get(name) or installed_version(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "llava-verifier"


def test_tried_versions_need_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is resolved, nothing kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert versions.untried() == {}
    assert versions.warning() == ""
    versions.require_names()
    assert not list(tmp_path.iterdir())


def test_a_newer_version_is_named(future: Path) -> None:
    """With those that were tried; what a build adds to a version is none of it."""
    assert versions.untried() == {"executorch": "1.9.0", "transformers": "6.0.0"}
    assert f"executorch 1.9.0 (tried: {', '.join(SEEN['executorch'])})" in versions.warning()


def test_names_are_resolved_once_for_each_set_of_versions(future: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache remembers; another version is resolved anew; a cache that cannot be written costs time alone."""
    resolved: list[str] = []
    monkeypatch.setattr(versions, "missing_names", lambda: resolved.append("all") or [])
    versions.require_names()
    versions.require_names()
    assert resolved == ["all"]
    monkeypatch.setitem(FUTURE, "executorch", "1.9.1")
    versions.require_names()
    assert resolved == ["all"] * 2 and len(list(future.iterdir())) == 2
    blocked = future.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    versions.require_names()
    assert resolved == ["all"] * 3


def test_a_name_that_is_gone_refuses_the_run(
    future: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2; which name, which versions were tried, what to install. One that saves time alone is no reason."""
    monkeypatch.setattr(upstream, "GONE", Name("executorch.version:gone", "a test"), raising=False)
    monkeypatch.setattr(upstream, "SAVES_TIME", Name("executorch.version:too", "a test", optional=True), raising=False)
    with pytest.raises(UpstreamError, match="1 names that the verifier uses") as caught:
        versions.require_names()
    assert "executorch.version:gone" in str(caught.value) and "executorch.version:too" not in str(caught.value)
    assert str(caught.value.fix).startswith("pip install executorch==")
    assert not future.exists()
    assert verify(EMBEDDED_PTE, "--checks", "structure.limits") == 2
    said = capsys.readouterr().err
    assert "warning: this verifier was not tried with executorch 1.9.0" in said


@pytest.mark.slow  # imports all packages anew
def test_names_are_found_by_a_process_that_has_imported_nothing() -> None:
    """The runtime needs libraries of torch that are loaded before it."""
    code = "from verifier.core.versions import missing_names; print(missing_names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]")


def test_a_newer_version_runs_with_a_warning(
    future: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If all names are there."""
    monkeypatch.setattr(versions, "missing_names", list)
    assert verify(EMBEDDED_PTE, "--checks", "structure.limits") == 0
    assert "was not tried with executorch 1.9.0" in capsys.readouterr().err
