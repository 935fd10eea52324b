"""Files of earlier releases are verified by today's gate; real runtimes of two releases run each other's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.artifact.program import open_artifact
from verifier.commands.skew import main
from verifier.core.errors import RunnerError, UsageError
from verifier.export.manifest import read_manifest
from verifier.runner.environments import environment_runner
from verifier.runner.protocol import Bundle

KEPT = Path(__file__).parents[2] / "golden" / "skew"
RELEASES = {"executorch-1.4.pte": "1.4.1"}


def test_every_kept_file_is_listed() -> None:
    """With the release that wrote it."""
    assert {path.name for path in KEPT.glob("*.pte")} == set(RELEASES)
    for name, release in RELEASES.items():
        manifest = read_manifest(KEPT / name)
        assert manifest is not None and manifest.versions["executorch"] == release
        assert open_artifact(KEPT / name).methods.keys() == open_artifact(EMBEDDED_PTE).methods.keys()


@pytest.mark.parametrize("name", RELEASES)
def test_a_file_of_an_earlier_release_is_verified(name: str, tmp_path: Path) -> None:
    """Structure, every weight, every instruction. The slow test makes all checks."""
    checks = "structure.*,weights.*,layers.coverage,layers.kernel,layers.graph"
    report = tmp_path / "report.json"
    assert verify(KEPT / name, "--images", "blank", "--checks", checks, "--json", str(report)) == 0
    assert len(json.loads(report.read_text())["checks"]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_all_checks_pass_on_a_file_of_an_earlier_release(name: str) -> None:
    """The whole gate, as a release would."""
    assert verify(KEPT / name) == 0


@pytest.mark.slow  # fetches two wheels
@pytest.mark.parametrize("pte", [EMBEDDED_PTE, KEPT / "executorch-1.4.pte"], ids=lambda path: path.name)
def test_two_releases_run_each_others_files(pte: Path, tmp_path: Path) -> None:
    """The real runtimes of 1.4.1 and 1.5.1: the same bits. A release that cannot run here is named with its reason."""
    found = tmp_path / "skew.json"
    assert main([str(pte), "--runtimes", "1.4.1,1.5.1,1.0.0", "--pictures", "2", "--json", str(found), "--quiet"]) == 2
    data = json.loads(found.read_text())
    assert {one["runtime"]: one["finding"] for one in data["runtimes"]} == {"1.5.1": "same", "1.0.0": "not run"}
    assert "asks for torch" in data["runtimes"][1]["reason"]


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call installs nothing; what pip does not find leaves nothing behind that the next call takes for an environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = environment_runner("1.5.1")
    assert runner.version == "1.5.1" and runner.python.is_relative_to(tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    assert environment_runner("1.5.1") == runner
    result = runner.run(Bundle(EMBEDDED_PTE, ()), timeout_s=120)
    assert (result.outcome, result.versions["executorch"]) == ("ok", "1.5.1")
    for _ in range(2):
        with pytest.raises(RunnerError, match=r"executorch 1\.4\.1 cannot be installed"):
            environment_runner("1.4.1")


@pytest.mark.parametrize("program", ["/bin/echo", "/bin/false", "/etc/passwd"])
def test_what_is_no_python_is_named(program: str) -> None:
    """A program that prints something else, one that fails, a file that does not start: not a failure of our own."""
    with pytest.raises(RunnerError, match=f"{program} is no Python with executorch"):
        environment_runner(program)


@pytest.mark.parametrize("word", ["latest", "", "1.5.1; rm -rf /", "-e ."])
def test_what_is_no_release_is_refused(word: str) -> None:
    """It is never given to pip."""
    with pytest.raises(UsageError, match=r"no release of executorch|no such Python"):
        environment_runner(word)
