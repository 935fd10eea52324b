"""Names of a Hugging Face checkpoint's tensors, and the parameter of the definition that each one feeds.

The map is total in both directions. A parameter without a tensor and a tensor without a parameter are errors: issue
ET#12324 was a renamed key that `strict=False` let pass in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verifier.errors import CheckpointError
from verifier.model.geometry import Geometry

_LAYER_LINEARS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_TEXT_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def module_of(parameter: str) -> str:
    """The module that owns a parameter: its name without `.weight` or `.bias`."""
    return parameter.removesuffix(".weight").removesuffix(".bias")


@dataclass(frozen=True)
class KeyMap:
    """Definition parameter -> checkpoint key, by part; `unused` are tensors that LLaVA-1.5 carries and does not use."""

    vision: dict[str, str]
    text: dict[str, str]
    embedding: str
    unused: frozenset[str]

    @property
    def used(self) -> frozenset[str]:
        """All checkpoint keys that reach the program."""
        return frozenset(self.vision.values()) | frozenset(self.text.values()) | {self.embedding}


@dataclass(frozen=True)
class _Spelling:
    """Prefixes of one generation of `transformers`."""

    tower: str
    projector: str
    text: str
    head: str


# transformers >= 5, 4.52-4.x, and the layout in which llava-hf/llava-1.5-7b-hf was published.
_SPELLINGS = (
    _Spelling("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head.weight"),
    _Spelling(
        "model.vision_tower.vision_model.", "model.multi_modal_projector.", "model.language_model.", "lm_head.weight"
    ),
    _Spelling(
        "vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head.weight"
    ),
)


def _vision_layer(prefix: str, source: str) -> dict[str, str]:
    pairs = {f"attention.{mine}": f"self_attn.{theirs}" for theirs, mine in _LAYER_LINEARS.items()}
    pairs |= {name: f"mlp.{name}" for name in ("fc1", "fc2")}
    pairs |= {"norm1": "layer_norm1", "norm2": "layer_norm2"}
    return {
        f"{prefix}{mine}.{kind}": f"{source}{theirs}.{kind}"
        for mine, theirs in pairs.items()
        for kind in ("weight", "bias")
    }


def _vision_keys(spelling: _Spelling, geometry: Geometry) -> tuple[dict[str, str], frozenset[str]]:
    tower = spelling.tower
    mapped = {
        "tower.class_embedding": f"{tower}embeddings.class_embedding",
        "tower.patch_embedding.weight": f"{tower}embeddings.patch_embedding.weight",
        "tower.position_embedding": f"{tower}embeddings.position_embedding.weight",
    }
    for kind in ("weight", "bias"):
        mapped[f"tower.pre_norm.{kind}"] = f"{tower}pre_layrnorm.{kind}"  # CLIP's own spelling
        for name in ("linear_1", "linear_2"):
            mapped[f"projector.{name}.{kind}"] = f"{spelling.projector}{name}.{kind}"
    unused = {f"{tower}post_layernorm.{kind}" for kind in ("weight", "bias")}
    for layer in range(geometry.vision.layers):
        keys = _vision_layer(f"tower.layers.{layer}.", f"{tower}encoder.layers.{layer}.")
        if layer < geometry.vision.layers_used:
            mapped |= keys
        else:
            unused |= set(keys.values())
    return mapped, frozenset(unused)


def _text_keys(spelling: _Spelling, geometry: Geometry) -> dict[str, str]:
    mapped = {"norm.weight": f"{spelling.text}norm.weight", "output.weight": spelling.head}
    for layer in range(geometry.text.layers):
        for theirs, mine in _TEXT_LAYER.items():
            mapped[f"layers.{layer}.{mine}.weight"] = f"{spelling.text}layers.{layer}.{theirs}.weight"
    return mapped


def _map(spelling: _Spelling, geometry: Geometry) -> KeyMap:
    vision, unused = _vision_keys(spelling, geometry)
    return KeyMap(vision, _text_keys(spelling, geometry), f"{spelling.text}embed_tokens.weight", unused)


def _is_buffer(key: str) -> bool:
    """Index tables and frequencies that old `transformers` stored; they follow from the geometry."""
    return key.endswith(("position_ids", "rotary_emb.inv_freq"))


def map_keys(keys: Iterable[str], geometry: Geometry) -> KeyMap:
    """The key map for a checkpoint. Raises `CheckpointError` naming keys that are missing or that nothing explains."""
    present = {key for key in keys if not _is_buffer(key)}
    candidates = [_map(spelling, geometry) for spelling in _SPELLINGS]
    best = max(candidates, key=lambda candidate: len(candidate.used & present))
    missing, unknown = best.used - present, present - best.used - best.unused
    if missing or unknown:
        raise CheckpointError(
            "the checkpoint's tensors are not those of its config.json",
            got="; ".join(
                _listed(kind, names) for kind, names in (("missing", missing), ("unknown", unknown)) if names
            ),
            expected=f"{len(best.used)} tensors, each with one use",
            where="keys of the safetensors files",
            fix="check that config.json belongs to these weights, and that no key was renamed",
        )
    return best


def _listed(kind: str, names: set[str] | frozenset[str], shown: int = 4) -> str:
    some = sorted(names)
    more = f" and {len(some) - shown} more" if len(some) > shown else ""
    return f"{kind} {', '.join(some[:shown])}{more}"
