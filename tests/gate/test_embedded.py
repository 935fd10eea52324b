"""The embedded program passes the gate, and what the gate writes keeps its contract."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.support import EMBEDDED_PTE, verify
from verifier.artifact.program import open_artifact
from verifier.backends.calls import census_of
from verifier.export.manifest import read_manifest
from verifier.report.as_json import read_report

pytestmark = pytest.mark.xdist_group("embedded")


def test_embedded_program_is_verified(report_folder: Path) -> None:
    """Exit status 0, verdict pass, every check passed, nothing skipped, steps compared."""
    report = json.loads((report_folder / "report.json").read_text())
    wrong = [f"{c['id']} {c['case']}: {c['message']}" for c in report["checks"] if c["verdict"] != "pass"]
    assert wrong == []
    assert (report_folder / "status").read_text() == "0"
    assert report["verdict"] == "pass"
    assert report["blame"] is None
    assert report["partial"] is False
    compared = {rung["step"]: rung["compared"] for rung in report["rungs"]}
    assert all(compared[step] > 0 for step in ("mapping", "quantization", "lowering", "kernel"))


def test_report_has_the_fields_of_its_contract(report_folder: Path) -> None:
    """`verifier.report/1`, field by field, strict JSON, and as its published schema says."""
    text = (report_folder / "report.json").read_text()
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert list(report) == [
        *("schema", "verdict", "reason", "partial", "artifact", "checkpoint", "request"),
        *("goldens", "target", "rungs", "checks", "blame", "exceptions", "facts", "figures", "environment", "cost"),
    ]
    assert read_report(report_folder / "report.json") == report
    assert report["schema"] == "verifier.report/1"
    assert set(report["artifact"]) == {"path", "sha256", "bytes", "methods", "recipe"}
    assert {"text_decoder", "token_embedding", "vision_encoder"} <= set(report["artifact"]["methods"])
    assert set(report["target"]) == {
        *("name", "isa", "cpu_features", "versions"),
        *("instructions", "in_use", "conditions"),
    }
    fields = {"id", "step", "case", "verdict", "measured", "allowed", "share", "where", "message"}
    assert all(set(c) == fields for c in report["checks"])
    assert all(set(r) == {"step", "verdict", "compared", "coverage", "worst"} for r in report["rungs"])
    assert report["cost"]["wall_s"] > 0
    assert report["cost"]["peak_rss_bytes"] > 100e6
    assert set(report["figures"]) == {"images", "streams", "cache", "eyes"}
    assert len(report["facts"]["constants"]) > 100


def test_junit_counts_every_check(report_folder: Path) -> None:
    """One test case per check and case, none failed."""
    suite = ElementTree.parse(report_folder / "junit.xml").getroot()
    report = json.loads((report_folder / "report.json").read_text())
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) == len(report["checks"])
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"


def test_structure_of_the_embedded_program(snapshot: SnapshotAssertion) -> None:
    """Methods, signatures, metadata, instruction census and planned memory, as committed."""
    artifact = open_artifact(EMBEDDED_PTE)
    manifest = read_manifest(EMBEDDED_PTE)
    assert manifest is not None
    assert {
        "recipe": manifest.recipe.name,
        "census": census_of(artifact),
        "signatures": {
            n: [list(map(str, f.inputs)), list(map(str, f.outputs))]
            for n, f in artifact.methods.items()
            if f.constant is None
        },
        "metadata": {n: f.constant for n, f in artifact.methods.items() if f.constant is not None},
        "planned_bytes": {n: f.planned_bytes for n, f in artifact.methods.items() if f.constant is None},
    } == snapshot


def test_embedded_files_are_small(embedded_pte: Path) -> None:
    """Weights at most 12 MB, program at most 6 MB."""
    assert embedded_pte.stat().st_size <= 6e6
    assert (embedded_pte.parent / "model.safetensors").stat().st_size <= 12e6


def test_hugging_face_loads_the_model_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` of model and processor, and a caption through their own generate()."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = EMBEDDED_PTE.parent
    processor = LlavaProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(images=Image.open(folder / "images" / "pair_base.png"), text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == 1024).sum()) == 576
    out = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    caption = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert caption == "A large red circle next to a small blue square on a white background."


def test_run_in_part_is_no_ground_to_ship(capsys: pytest.CaptureFixture[str]) -> None:
    """Some checks alone may pass; what is said then speaks for those."""
    assert verify(EMBEDDED_PTE, "--checks", "weights.*") == 0
    said = capsys.readouterr().out
    assert "VERIFIED IN PART" in said
    assert "no ground to ship" in said
    assert "may ship" not in said
