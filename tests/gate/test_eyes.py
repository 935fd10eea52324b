"""The whole command through the eyes of apps: `--app`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE, verify
from verifier.report.as_json import schema

PICTURES = "tall_0,wide_0,square_0"


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on three pictures with two apps named, and its exit status."""
    folder = tmp_path_factory.mktemp("eyes")
    words = ("--checks", "pixels.*", "--images", PICTURES, "--app", "cpp", "--app", "hf", "--report", str(folder))
    (folder / "status").write_text(str(verify(EMBEDDED_PTE, *words)))
    return folder


def test_an_app_that_feeds_what_the_program_refuses_fails(looked: Path) -> None:
    """tall_0 is 229 px wide; the other sizes are those of usual shapes. The bytes are not accused."""
    data = json.loads((looked / "report.json").read_text())
    assert (looked / "status").read_text() == "1"
    verdicts = {(check["id"], check["case"]): check["verdict"] for check in data["checks"]}
    assert verdicts["pixels.sizes", "prepared"] == "pass"
    assert verdicts["pixels.sizes", "hf"] == "pass"
    assert (verdicts["pixels.sizes", "cpp"], verdicts["pixels.kept", "cpp"]) == ("fail", "fail")
    assert data["blame"]["step"] == "use"
    assert "The bytes may be right" in (looked / "summary.md").read_text()
    assert "229 x 336" in data["figures"]["eyes"]["apps"][0]["refused"]


def test_the_table_is_in_every_form_of_the_report(looked: Path) -> None:
    """And its data are those of the schema."""
    data = json.loads((looked / "report.json").read_text())
    assert [app["name"] for app in data["figures"]["eyes"]["apps"]] == ["cpp", "android", "ios", "hf", "original"]
    assert "eyes" in schema()["properties"]["figures"]["properties"]
    for form in ("report.html", "summary.md"):
        text = (looked / form).read_text()
        assert "Android LlamaDemo" in text
        assert "1 of 3, 1 not fed" in text
