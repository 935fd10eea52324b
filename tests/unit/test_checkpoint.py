"""Checkpoints: found, identified, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from verifier.core.errors import CheckpointError
from verifier.families.llava.definition import build_definition
from verifier.families.registry import open_checkpoint


@pytest.fixture
def copy(micro_checkpoint: Path, tmp_path: Path) -> Path:
    """A micro checkpoint that may be damaged."""
    return Path(shutil.copytree(micro_checkpoint, tmp_path / "model"))


def test_embedded_checkpoint_opens_by_default() -> None:
    """llava_tiny is the default model: 576 image tokens, several groups in a row."""
    checkpoint = open_checkpoint()
    assert checkpoint.name == "llava_tiny"
    assert checkpoint.geometry.vision.patches == 576
    assert min(checkpoint.geometry.vision.layers, checkpoint.geometry.text.layers) >= 4


def test_identity_changes_with_one_weight(copy: Path) -> None:
    """SHA-256 over config and weights, not over names."""
    before = open_checkpoint(copy).sha256
    weights = load_file(copy / "model.safetensors")
    weights["model.language_model.norm.weight"][3] += 1
    save_file(weights, copy / "model.safetensors")
    assert open_checkpoint(copy).sha256 != before


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_truncated_safetensors_are_refused(copy: Path, size: int) -> None:
    """At any place: in the header length, in the header, in the data."""
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        open_checkpoint(copy)


def test_corrupt_safetensors_header_is_refused(copy: Path) -> None:
    """A header that is not JSON."""
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="copy or download the file again"):
        open_checkpoint(copy)


def test_shards_are_read_through_the_index(copy: Path) -> None:
    """Two shards and an index hold the same model."""
    whole = load_file(copy / "model.safetensors")
    names = sorted(whole)
    half = len(names) // 2
    parts = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
    for file, keys in parts.items():
        save_file({key: whole[key] for key in keys}, copy / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    checkpoint = open_checkpoint(copy)
    assert checkpoint.keys == frozenset(whole)
    assert torch.equal(checkpoint.tensor(names[-1]), whole[names[-1]])


def test_index_may_not_point_outside(copy: Path) -> None:
    """A path in the index is refused, whatever lies there."""
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../micro/model.safetensors"}}))
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not beside it"):
        open_checkpoint(copy)


@pytest.mark.parametrize(("model", "said"), [("/nonexistent/folder", "no such checkpoint"), (".", "no config.json")])
def test_missing_checkpoints_are_refused(
    model: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, and a folder without a model."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(model)


def test_wrong_shape_is_refused_by_name(copy: Path) -> None:
    """The message names tensor, shape and parameter."""
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(5, 64)
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"(?s)lm_head\.weight has the wrong shape.*\[1088, 64\] for output\.weight"
    ):
        build_definition(open_checkpoint(copy))
