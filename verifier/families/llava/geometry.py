"""The shape of a LLaVA-1.5, read from a checkpoint's `config.json`. No heavy imports."""

from __future__ import annotations

import re

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.geometry import Geometry, TextGeometry, VisionGeometry

# What `transformers` leaves out of config.json because it equals its own defaults (CLIPVisionConfig, LlamaConfig).
_VISION_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
}
_LIMIT = 1 << 20
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue, from 0 to 1: the program subtracts the one and divides by the other."""


def read_geometry(config: JsonObject) -> Geometry:
    """Read a parsed `config.json`. Raises `CheckpointError` naming the field that is not LLaVA-1.5."""
    _refuse_original_layout(config)
    _expect(config, "model_type", "llava")
    _expect(config, "vision_feature_select_strategy", "default", default="default")
    _expect(config, "projector_hidden_act", "gelu", default="gelu")
    vision, text = _section(config, "vision_config"), _section(config, "text_config")
    return Geometry(
        _vision(_VISION_DEFAULTS | vision, _integer(config, "vision_feature_layer", default=-2, signed=True)),
        _text(_TEXT_DEFAULTS | text, tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))),
        _integer(config, "image_token_index" if "image_token_index" in config else "image_token_id"),
    )


def _refuse(field: str, got: object, expected: object) -> CheckpointError:
    return CheckpointError(
        f"config.json describes a model that is not LLaVA-1.5: {field}",
        got=got,
        expected=expected,
        where="config.json",
        fix="give --model a LLaVA-1.5 checkpoint (model_type 'llava', CLIP tower, Llama decoder)",
    )


_ORIGINAL_FIELDS = (
    "mm_projector_type",
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_vision_select_layer",
    "tune_mm_mlp_adapter",
)
CONVERT = (
    "give --model a converted checkpoint, such as llava-hf/llava-1.5-7b-hf, or convert this one with the script of transformers 4: "
    "python src/transformers/models/llava/convert_llava_weights_to_hf.py --text_model_id lmsys/vicuna-7b-v1.5 "
    "--vision_model_id openai/clip-vit-large-patch14-336 --old_state_dict_id liuhaotian/llava-v1.5-7b --output_hub_path ORG/NAME"
)
"""What to do with a checkpoint in the layout of github.com/haotian-liu/LLaVA."""


def _refuse_original_layout(config: JsonObject) -> None:
    """Raise `CheckpointError` for the configuration of the original LLaVA code, which `transformers` does not load."""
    architectures = config.get("architectures")
    named = [str(name) for name in architectures] if isinstance(architectures, list) else []
    original = [name for name in named if re.fullmatch(r"Llava\w*ForCausalLM", name)]
    fields = [name for name in _ORIGINAL_FIELDS if name in config]
    if original or fields or config.get("model_type") in ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen"):
        shown = (
            [f"architectures {', '.join(named)}"] if named else [f"model_type {config.get('model_type')}"]
        ) + fields[:2]
        raise CheckpointError(
            "the checkpoint is in the layout of the original LLaVA code, not in Hugging Face's",
            got=", ".join(shown),
            expected="architectures LlavaForConditionalGeneration, with vision_config and text_config",
            where="config.json",
            fix=CONVERT,
        )


def _expect(config: JsonObject, field: str, expected: object, *, default: object = None) -> None:
    got = config.get(field, default)
    if got != expected:
        raise _refuse(field, got, expected)


def _section(config: JsonObject, field: str) -> JsonObject:
    section = config.get(field)
    if not isinstance(section, dict):
        raise _refuse(field, type(section).__name__, "an object")
    return {name: value for name, value in section.items() if value is not None}


def _integer(config: JsonObject, field: str, *, default: int | None = None, signed: bool = False) -> int:
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or not (-_LIMIT if signed else 1) <= value <= _LIMIT:
        raise _refuse(field, value, "an integer" if signed else f"an integer in 1..{_LIMIT}")
    return value


def _vision(config: JsonObject, feature_layer: int) -> VisionGeometry:
    _expect(config, "model_type", "clip_vision_model", default="clip_vision_model")
    _expect(config, "hidden_act", "quick_gelu")
    _expect(config, "num_channels", 3)
    layers = _integer(config, "num_hidden_layers")
    # hidden_states[0] is the embedding, so index -1 is after the last layer and -2 leaves one layer unused.
    layers_used = layers + 1 + feature_layer if feature_layer < 0 else feature_layer
    if not 0 <= layers_used <= layers:
        raise _refuse("vision_feature_layer", feature_layer, f"an index into {layers + 1} hidden states")
    image_px, patch_px = _integer(config, "image_size"), _integer(config, "patch_size")
    width, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    if image_px % patch_px or width % heads:
        raise _refuse(
            "vision_config", f"image {image_px}, patch {patch_px}, width {width}, heads {heads}", "sizes that divide"
        )
    hidden = _integer(config, "intermediate_size")
    return VisionGeometry(
        width, hidden, layers, layers_used, heads, image_px, patch_px, float(config["layer_norm_eps"])
    )


def _text(config: JsonObject, *, tied: bool) -> TextGeometry:
    _expect(config, "model_type", "llama", default="llama")
    _expect(config, "hidden_act", "silu")
    _expect(config, "attention_bias", False, default=False)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise _refuse("rope_parameters", kind, "default")
    width, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    kv_heads = _integer(config, "num_key_value_heads", default=heads)
    head_dim = _integer(config, "head_dim", default=width // heads)
    if width % heads or heads % kv_heads or head_dim % 2:
        raise _refuse(
            "text_config",
            f"width {width}, heads {heads}, kv_heads {kv_heads}, head_dim {head_dim}",
            "sizes that divide",
        )
    return TextGeometry(
        width=width,
        hidden=_integer(config, "intermediate_size"),
        layers=_integer(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_integer(config, "vocab_size"),
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float((config | rope).get("rope_theta", 10000.0)),
        tied=tied,
        max_positions=_integer(config, "max_position_embeddings"),
    )
