"""Key layouts: what transformers loads is accepted, and loaded the same; what is not Hugging Face's is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from verifier.core.errors import CheckpointError
from verifier.families.checkpoint import Checkpoint
from verifier.families.llava.hugging_face import load_hugging_face
from verifier.families.llava.keymap import expected_keys, map_keys
from verifier.families.registry import open_checkpoint

Rename = Callable[[str], str]


def _prefix(*pairs: tuple[str, str]) -> Rename:
    def renamed(key: str) -> str:
        for old, new in pairs:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    return renamed


TOWER, PROJECTOR, TEXT = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
PUBLISHED = (
    (TEXT, "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    (TOWER, "vision_tower.vision_model."),
    (PROJECTOR, "multi_modal_projector."),
)
ACCEPTED: dict[str, Rename] = {
    "published": _prefix(*PUBLISHED),
    "decoder published, tower new": _prefix(
        *PUBLISHED[:2], (TOWER, "vision_tower."), (PROJECTOR, "multi_modal_projector.")
    ),
    "decoder new, tower published": _prefix(*PUBLISHED[2:]),
    "tower of transformers 4.52": _prefix((TOWER, "model.vision_tower.vision_model.")),
    "head alone published": _prefix(PUBLISHED[1]),
    "head under model": _prefix(("lm_head.", "model.lm_head.")),
    "decoder with both prefixes": _prefix((TEXT, "model.language_model.model.")),
    "saved from the base model": _prefix(("model.", "")),
    "prefix twice": _prefix(("model.", "model.model.")),
    "one layer in another spelling": lambda k: k.replace(TEXT, "language_model.model.") if "layers.1" in k else k,
}
REFUSED: dict[str, Rename] = {
    "head under the new decoder": _prefix(("lm_head.", "model.language_model.lm_head.")),
    "decoder alone": _prefix((TEXT, "")),
    "another part": _prefix((PROJECTOR, "model.projector.")),
}


def _respelled(source: Path, folder: Path, rename: Rename) -> Path:
    made = Path(shutil.copytree(source, folder / "model"))
    weights = load_file(made / "model.safetensors")
    save_file({rename(key): tensor for key, tensor in weights.items()}, made / "model.safetensors", {"format": "pt"})
    return made


def _loaded(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Hugging Face's parameters. Raises if it leaves out, or makes up, any."""
    from transformers import LlavaForConditionalGeneration

    _, seen = LlavaForConditionalGeneration.from_pretrained(
        checkpoint.directory, dtype=torch.float32, output_loading_info=True
    )
    assert not seen["missing_keys"]
    assert not seen["unexpected_keys"]
    return dict(load_hugging_face(checkpoint).state_dict())


@pytest.mark.parametrize("layout", ACCEPTED)
def test_layouts_that_transformers_loads_are_accepted(layout: str, micro_checkpoint: Path, tmp_path: Path) -> None:
    """Every parameter is the tensor that transformers loads for it."""
    checkpoint = open_checkpoint(_respelled(micro_checkpoint, tmp_path, ACCEPTED[layout]))
    mapped, theirs = map_keys(checkpoint.keys, checkpoint.geometry), _loaded(checkpoint)
    wanted = expected_keys(checkpoint.geometry)
    pairs = [(mapped.text[name], key) for name, key in wanted.text.items()]
    pairs += [(mapped.vision[name], key) for name, key in wanted.vision.items()] + [
        (mapped.embedding, wanted.embedding)
    ]
    assert len(pairs) > 60
    for key, canonical in pairs:
        assert torch.equal(checkpoint.tensor(key).float(), theirs[canonical]), canonical


@pytest.mark.parametrize("layout", REFUSED)
def test_layouts_that_transformers_does_not_load_are_refused(
    layout: str, micro_checkpoint: Path, tmp_path: Path
) -> None:
    """transformers would make the missing ones up; the message names them."""
    checkpoint = open_checkpoint(_respelled(micro_checkpoint, tmp_path, REFUSED[layout]))
    with pytest.raises(AssertionError):
        _loaded(checkpoint)
    with pytest.raises(CheckpointError, match=r"(?s)missing .*unknown"):
        map_keys(checkpoint.keys, checkpoint.geometry)


def test_two_spellings_of_one_tensor_are_refused(micro_checkpoint: Path, tmp_path: Path) -> None:
    """A loader takes either; the message names both."""
    folder = _respelled(micro_checkpoint, tmp_path, lambda key: key)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["lm_head.weight"] + 1
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"language_model\.lm_head\.weight and lm_head\.weight"):
        map_keys(checkpoint.keys, checkpoint.geometry)


@pytest.mark.parametrize("dropped", ["lm_head.weight", "model.language_model.embed_tokens.weight"])
@pytest.mark.parametrize("section", ["", "text_config"])
def test_a_tied_checkpoint_may_leave_out_head_or_table(
    dropped: str, section: str, micro_checkpoint: Path, tmp_path: Path
) -> None:
    """transformers ties in both directions, whichever section says so."""
    folder = _respelled(micro_checkpoint, tmp_path, lambda key: key)
    weights = load_file(folder / "model.safetensors")
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config)["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    mapped, theirs = map_keys(checkpoint.keys, checkpoint.geometry), load_hugging_face(checkpoint).state_dict()
    assert mapped.embedding == mapped.text["output.weight"]
    assert torch.equal(checkpoint.tensor(mapped.embedding).float(), theirs["lm_head.weight"])
    assert torch.equal(theirs["model.language_model.embed_tokens.weight"], theirs["lm_head.weight"])


def test_a_head_is_not_made_up(micro_checkpoint: Path, tmp_path: Path) -> None:
    """Not tied, and no head: missing."""
    folder = _respelled(micro_checkpoint, tmp_path, lambda key: key)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        map_keys(checkpoint.keys, checkpoint.geometry)


@pytest.mark.parametrize(
    "rename",
    [
        _prefix(
            (TEXT, "model."),
            (PROJECTOR, "model.mm_projector."),
            (TOWER, "model.vision_tower.vision_tower.vision_model."),
        ),
        _prefix((PROJECTOR, "mm_projector.")),
    ],
)
def test_original_tensors_are_refused_with_the_conversion(
    rename: Rename, micro_checkpoint: Path, tmp_path: Path
) -> None:
    """Tensors of the original LLaVA code, whole or its projector alone, beside a config of Hugging Face's."""
    checkpoint = open_checkpoint(_respelled(micro_checkpoint, tmp_path, rename))
    with pytest.raises(CheckpointError, match=r"(?s)original LLaVA.*convert_llava_weights_to_hf"):
        map_keys(checkpoint.keys, checkpoint.geometry)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 4096},
        {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        {"model_type": "llama", "mm_projector_type": "mlp2x_gelu"},
        {"model_type": "llava", "architectures": ["LlavaMistralForCausalLM"]},
    ],
)
def test_original_configurations_are_refused_with_the_conversion(config: dict[str, object], tmp_path: Path) -> None:
    """Before anything is said of weights, which are often pickled there."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"(?s)original LLaVA.*llava-hf/llava-1.5-7b-hf"):
        open_checkpoint(tmp_path)
