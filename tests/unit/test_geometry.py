"""Geometry comes from config.json, for every LLaVA-1.5 and for nothing else."""

from __future__ import annotations

import copy

import pytest

from verifier.core.errors import CheckpointError
from verifier.families.llava.geometry import read_geometry
from verifier.families.llava.keymap import expected_keys, map_keys
from verifier.faults.subjects import micro_config

LLAVA_7B = {
    "model_type": "llava",
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "text_config": {"model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064},
}


def test_geometry_of_7b_fills_in_the_defaults() -> None:
    """The published config names few text fields; Llama-2-7B's stand behind them."""
    geometry = read_geometry(LLAVA_7B)
    assert (geometry.vision.layers_used, geometry.vision.patches, geometry.vision.width) == (23, 576, 1024)
    text = geometry.text
    assert (text.width, text.layers, text.heads, text.kv_heads, text.head_dim, text.hidden) == (
        4096,
        32,
        32,
        32,
        128,
        11008,
    )


def test_geometry_reads_grouped_queries() -> None:
    """kv_heads below heads is allowed."""
    assert read_geometry(micro_config()).text.kv_heads == 2


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model_type",), "llama", "model_type"),
        (("vision_config", "patch_size"), 13, "vision_config"),
        (("vision_config", "hidden_act"), "gelu", "hidden_act"),
        (("vision_feature_layer",), -9, "vision_feature_layer"),
        (("text_config", "num_key_value_heads"), 3, "text_config"),
        (("text_config", "hidden_size"), "64", "hidden_size"),
        (("text_config", "rope_scaling"), {"rope_type": "llama3"}, "rope_parameters"),
        (("text_config",), None, "text_config"),
    ],
)
def test_geometry_refuses_other_models_by_field(path: tuple[str, ...], value: object, said: str) -> None:
    """The message names the field that is not LLaVA-1.5's."""
    config = copy.deepcopy(micro_config())
    section = config
    for name in path[:-1]:
        section = section[name]  # type: ignore[assignment]
    section[path[-1]] = value
    with pytest.raises(CheckpointError, match=said):
        read_geometry(config)


def _published(key: str) -> str:
    """The spelling in which llava-hf/llava-1.5-7b-hf was published."""
    renamed = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    old = next(prefix for prefix in renamed if key.startswith(prefix))
    return renamed[old] + key.removeprefix(old)


def _keys_7b() -> set[str]:
    mapped = expected_keys(read_geometry(LLAVA_7B))
    return {_published(key) for key in mapped.used | mapped.unused}


def test_keymap_takes_the_published_spelling() -> None:
    """Keys of llava-hf/llava-1.5-7b-hf as published: 23 used vision layers, the 24th unused."""
    mapped = map_keys(_keys_7b() | {"vision_tower.vision_model.embeddings.position_ids"}, read_geometry(LLAVA_7B))
    assert mapped.text["layers.31.feed_forward.w2.weight"] == "language_model.model.layers.31.mlp.down_proj.weight"
    assert len(mapped.text) == 32 * 9 + 2
    assert "vision_tower.vision_model.encoder.layers.23.mlp.fc1.weight" in mapped.unused


def test_keymap_names_a_renamed_key() -> None:
    """A key that was renamed is both missing and unknown (ET#12324 passed it in silence)."""
    keys = _keys_7b() - {"language_model.model.norm.weight"} | {"language_model.model.final_norm.weight"}
    with pytest.raises(CheckpointError, match=r"missing language_model\.model\.norm\.weight; unknown .*final_norm"):
        map_keys(keys, read_geometry(LLAVA_7B))
