"""`config.json` of LLaVA-1.5 in several sizes. 7b and 13b are those of llava-hf/llava-1.5-7b-hf and -13b-hf."""

from __future__ import annotations

from pathlib import Path

from verifier.core.errors import UsageError
from verifier.core.records import JsonObject
from verifier.families.checkpoint import EMBEDDED, read_json
from verifier.families.llava.geometry import read_geometry

_CONFIG_LIMIT_BYTES = 1 << 20
_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def _llama(width: int, hidden: int, layers: int, heads: int, vocabulary: int) -> JsonObject:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


def _llava(vision: JsonObject, text: JsonObject, image_token_id: int) -> JsonObject:
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": image_token_id,
        "image_seq_length": patches,
        "pad_token_id": image_token_id + 1,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
    }


NAMED: dict[str, JsonObject] = {
    "llava-1.5-7b": _llava(_CLIP_LARGE, _llama(4096, 11008, 32, 32, 32064), 32000),
    "llava-1.5-13b": _llava(_CLIP_LARGE, _llama(5120, 13824, 40, 40, 32064), 32000),
    # as wide as fits a test in a minute, and shallow: rows of many groups, several shards
    "wide": _llava(
        _CLIP_LARGE | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
        _llama(1024, 2816, 2, 8, 2112),
        2048,
    ),
}


def find_config(geometry: str) -> JsonObject:
    """The `config.json` of a name (also `tiny`, the embedded model's), or of a file. Raises `UsageError`, `CheckpointError`."""
    if geometry == "tiny":
        return read_json(EMBEDDED / "config.json", limit_bytes=_CONFIG_LIMIT_BYTES)
    if geometry in NAMED:
        return NAMED[geometry]
    path = Path(geometry)
    if not path.is_file():
        raise UsageError(
            "no such geometry",
            got=geometry,
            expected=f"{', '.join(('tiny', *NAMED))}, or the config.json of a LLaVA-1.5",
            fix="give --geometry one of them",
        )
    config = read_json(path, limit_bytes=_CONFIG_LIMIT_BYTES)
    read_geometry(config)
    return config
