"""Checkpoints from a seed: exact shapes, repeatable bytes, answers that end, and statistics that quantization has to work for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from verifier.commands.golden import answer
from verifier.commands.synthesize import main
from verifier.core.files import sha256_of_file
from verifier.families.llava.definition import build_definition
from verifier.families.llava.geometry import read_geometry
from verifier.families.llava.hugging_face import load_hugging_face
from verifier.families.llava.keymap import map_keys
from verifier.families.llava.prompt import DEFAULT_QUESTION
from verifier.families.registry import open_checkpoint
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.subjects import micro_config
from verifier.synth import folder as synth_folder
from verifier.synth.folder import chain, published_name, shapes_of
from verifier.synth.geometries import NAMED, find_config
from verifier.synth.weights import Maker


def _config(path: Path) -> Path:
    path.write_text(json.dumps(micro_config(hidden_size=128, intermediate_size=256)))
    return path


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in several shards."""
    root = tmp_path_factory.mktemp("synth")
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(synth_folder, "SHARD_BYTES", 200_000)
        arguments = [
            "--geometry",
            str(_config(root / "asked.json")),
            "--seed",
            "3",
            "--out",
            str(root / "made"),
            "--quiet",
        ]
        assert main(arguments) == 0
    return root / "made"


def test_checkpoint_is_hugging_faces(made: Path) -> None:
    """In several shards under the published names; `transformers` loads it, and no tensor is left over or missing."""
    checkpoint = open_checkpoint(str(made))
    assert len(checkpoint.shards) > 2
    assert all(path.stat().st_size < 600_000 for path in checkpoint.shards)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == checkpoint.keys
    for key, shard in index["weight_map"].items():
        with safe_open(made / shard, "pt") as file:
            assert file.get_tensor(key).dtype == torch.bfloat16
    assert any(key.startswith("vision_tower.vision_model.") for key in checkpoint.keys)
    assert map_keys(checkpoint.keys, checkpoint.geometry).unused
    model = load_hugging_face(checkpoint)
    head = model.state_dict()["lm_head.weight"]
    assert torch.equal(head, checkpoint.tensor("language_model.lm_head.weight").float())


def test_processor_is_that_of_the_tower(made: Path) -> None:
    """Frames of the size that the vision config asks for."""
    side = open_checkpoint(str(made)).geometry.vision.image_px
    fields = json.loads((made / "processor_config.json").read_text())["image_processor"]
    assert (fields["size"], fields["crop_size"]) == ({"shortest_edge": side}, {"height": side, "width": side})


def test_answers_end_and_are_confident(made: Path) -> None:
    """Greedy decoding in fp32 gives the eight tokens of the chain and EOS, each by a clear margin."""
    checkpoint = open_checkpoint(str(made))
    tokenizer = Tokenizer(made)
    image = Path(__file__).parents[2] / "golden" / "llava_tiny" / "images" / "blank.png"
    entry = answer(checkpoint, build_definition(checkpoint), image, kind="blank", question=DEFAULT_QUESTION)
    following = chain(tokenizer, length=8, pieces=1024, seed=3)
    ids = [next(iter(following.values()))]
    while ids[-1] in following:
        ids.append(following[ids[-1]])
    assert list(entry["ids"]) == ids
    assert ids[-1] == tokenizer.eos_id
    assert min(entry["margins"]) > 1


def test_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another seed other ones. What is there already is not overwritten."""
    monkeypatch.setattr(synth_folder, "SHARD_BYTES", 200_000)
    config = _config(tmp_path / "asked.json")
    for seed in (3, 4):
        out = tmp_path / str(seed)
        assert main(["--geometry", str(config), "--seed", str(seed), "--out", str(out), "--quiet"]) == 0
        assert (_hashes(out) == _hashes(made)) == (seed == 3)
    assert main(["--geometry", str(config), "--out", str(tmp_path / "3"), "--quiet"]) == 2


def test_weights_have_heavy_tails_and_outlier_channels() -> None:
    """Kurtosis of 4 and more; a few columns of the embedding an order of magnitude larger than the others."""
    config = find_config("wide")
    maker = Maker(read_geometry(config), seed=0, following={})
    shapes = shapes_of(config)
    weight = maker.tensor(name := "model.language_model.layers.0.mlp.gate_proj.weight", shapes[name]).double()
    assert float(weight.pow(4).mean() / weight.pow(2).mean() ** 2) > 4
    columns = maker.tensor(name := "model.language_model.embed_tokens.weight", shapes[name]).std(0)
    assert 1 <= int((columns > 8 * columns.median()).sum()) <= 10


def test_full_size_has_the_published_shapes() -> None:
    """Seven billion parameters under the published names, without allocating one."""
    shapes = shapes_of(NAMED["llava-1.5-7b"])
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 7_063_427_072
    names = {published_name(name): shape for name, shape in shapes.items()}
    assert names["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert names["language_model.lm_head.weight"] == (32064, 4096)
    assert names["multi_modal_projector.linear_1.weight"] == (4096, 1024)
    assert names["vision_tower.vision_model.encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)


def test_unknown_geometry_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the names that there are; a config of another model too."""
    assert main(["--geometry", "llava-2", "--out", str(tmp_path / "x")]) == 2
    assert "llava-1.5-7b" in capsys.readouterr().err
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"model_type": "bert"}))
    assert main(["--geometry", str(other), "--out", str(tmp_path / "x")]) == 2
    assert "not LLaVA-1.5" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
