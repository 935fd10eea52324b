"""What a full-size model needs, on a small one: a checkpoint in shards, a decoder streamed layer by layer, a short trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support import export, verify
from verifier.commands.synthesize import main as synthesize
from verifier.families import streaming
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint
from verifier.faults.subjects import answer_images
from verifier.faults.surgery import change_bytes, find_constants
from verifier.synth import folder as synth_folder
from verifier.synth.geometries import NAMED

pytestmark = pytest.mark.xdist_group("full size")
CHECKS = (
    "structure.limits,mapping.*,splice.*,weights.*,layers.coverage,layers.finite,layers.kernel,layers.constants,layers.graph,"
    "threads.*,kvcache.*,greedy.free,greedy.history,greedy.limit"
)
LAST_LINEAR = "text_decoder.layers.1.feed_forward.w2.weight"


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide, shallow model in many shards, its golden answer and its export."""
    root = tmp_path_factory.mktemp("wide")
    config = json.loads(json.dumps(NAMED["wide"]))
    config["vision_config"] |= {"image_size": 56, "hidden_size": 128, "intermediate_size": 256}
    config["text_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 4,
        "vocab_size": 1088,
    }
    config |= {"image_token_index": 1024, "image_seq_length": 16, "pad_token_id": 1025}
    (root / "asked.json").write_text(json.dumps(config))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(synth_folder, "SHARD_BYTES", 2 << 20)
        assert synthesize(["--geometry", str(root / "asked.json"), "--out", str(root / "model"), "--quiet"]) == 0
    (root / "model" / "images").mkdir()
    shutil.copy(EMBEDDED / "images" / "wide_0.png", root / "model" / "images")
    answer_images(root / "model")
    assert export(root / "model", root / "model" / "llava.pte") == 0
    return root / "model"


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 0)


def _alarms(report: Path) -> list[tuple[str, str, str]]:
    checks = json.loads(report.read_text())["checks"]
    return [(c["id"], c["case"], c["message"]) for c in checks if c["verdict"] != "pass"]


@pytest.mark.slow  # exports a wide model: two minutes without AVX-512
@pytest.mark.usefixtures("streamed")
def test_streamed_model_is_verified(wide_model: Path, tmp_path: Path) -> None:
    """Every check that needs no bands passes on the path of a model that does not fit."""
    pte, report = wide_model / "llava.pte", tmp_path / "report.json"
    assert len(open_checkpoint(str(wide_model)).shards) > 3
    status = verify(pte, "--model", str(wide_model), "--checks", CHECKS, "--json", str(report))
    assert (status, _alarms(report)) == (0, [])
    graph = [c for c in json.loads(report.read_text())["checks"] if c["id"] == "layers.graph"]
    assert len(graph) == 5
    assert min(c["measured"]["sqnr_db"] for c in graph) > 60


@pytest.mark.slow  # exports a wide model: two minutes without AVX-512
@pytest.mark.usefixtures("streamed")
def test_flipped_nibble_of_a_streamed_model_is_named(wide_model: Path, tmp_path: Path) -> None:
    """One 4-bit weight of the last layer: found by the layers alone, with its place."""
    pte, report = tmp_path / "llava.pte", tmp_path / "report.json"
    shutil.copy(wide_model / "llava.pte", pte)
    constant = find_constants(pte, open_checkpoint(str(wide_model)))[LAST_LINEAR]
    assert constant.value.constant is not None

    def flip(raw: np.ndarray) -> np.ndarray:
        made = raw.copy()
        made[12_345] ^= 0x70
        return made

    change_bytes(pte, constant.value.constant, flip)
    checks = "layers.constants,weights.tensors"
    assert verify(pte, "--model", str(wide_model), "--checks", checks, "--json", str(report)) == 1
    found = {(id, case) for id, case, _ in _alarms(report)}
    assert found == {("weights.tensors", LAST_LINEAR), ("layers.constants", "text_decoder.layers.1.feed_forward")}
