"""A package that an extra brings is missing: said before any work, with what to install."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.core import extras
from verifier.core.errors import UsageError
from verifier.plugin.child import answer
from verifier.runner.targets import make_runner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the extras is installed."""
    missing = set(extras.EXTRAS.values())
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else find_spec(name))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("target", ["ssh:pi@board", "adb", "adb:emulator-5554"])
def test_a_target_names_its_extra(target: str) -> None:
    """Not an ImportError."""
    with pytest.raises(UsageError, match=r"pip install 'llava-verifier\[(ssh|adb)\]'"):
        make_runner(target)


@pytest.mark.usefixtures("bare")
def test_a_report_names_its_extra_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and nothing is written; pytest's plugin likewise."""
    folder = tmp_path / "report"
    assert verify(EMBEDDED_PTE, "--report", str(folder)) == 2
    said = capsys.readouterr().err
    assert "--report needs a package that is not installed" in said and "pip install 'llava-verifier[report]'" in said
    assert not folder.exists()
    asked = {
        "pte": str(EMBEDDED_PTE),
        "model": None,
        "target": "local",
        "checks": "",
        "images": "",
        "report": str(folder),
    }
    refused = answer({"do": "plan", "requests": [asked | {"tokenizer": None, "budget": "", "apps": ""}]})["refused"]
    assert "pip install 'llava-verifier[report]'" in refused


def test_the_extras_are_those_of_the_package() -> None:
    """Each of them brings its module, and none of the modules comes with the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, module in extras.EXTRAS.items():
        assert any(re.match(rf"{module}\b", asked) for asked in project["optional-dependencies"][extra])
        assert not any(re.match(rf"{module}\b", asked) for asked in project["dependencies"])
        extras.require_extra(extra, "this test")
