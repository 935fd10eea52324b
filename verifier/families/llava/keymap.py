"""Names of a Hugging Face checkpoint's tensors, and the parameter of the definition that each one feeds.

The map is total in both directions. A parameter without a tensor and a tensor without a parameter are errors: issue
ET#12324 was a renamed key that `strict=False` let pass in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verifier.core.errors import CheckpointError
from verifier.families.geometry import Geometry
from verifier.families.llava.geometry import CONVERT

_ORIGINAL = re.compile(
    r"^(?:model\.)?(?:mm_projector\.|vision_tower\.vision_tower\.)|^model\.(?:layers\.\d+|embed_tokens)\."
)

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


TOWER, PROJECTOR, TEXT, HEAD = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.language_model.",
    "lm_head.weight",
)
"""Where transformers 5 keeps the parts of LLaVA."""
_RENAMED = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(?:model\.){0,2}vision_tower\.(?:vision_model\.)?"), TOWER),
    (re.compile(r"^(?:model\.){0,2}multi_modal_projector\."), PROJECTOR),
    (re.compile(r"^(?:model\.){0,2}language_model\.(?!lm_head\.)(?:model\.)?"), TEXT),
    (re.compile(r"^model\.lm_head\."), "lm_head."),
)


def canonical(key: str) -> str:
    """A checkpoint's key in the spelling of transformers 5.

    Each key is renamed by itself, as `transformers` does it (conversion_mapping.py, "llava" and "CLIPVisionModel"; prefixes of base models
    are added or dropped): so a file may mix the spellings of several releases. A key that is of no spelling stays as it is.
    """
    for pattern, target in _RENAMED:
        renamed, count = pattern.subn(target, key)
        if count:
            return renamed
    return key


def _vision_layer(prefix: str, source: str) -> dict[str, str]:
    pairs = {f"attention.{mine}": f"self_attn.{theirs}" for theirs, mine in _LAYER_LINEARS.items()}
    pairs |= {name: f"mlp.{name}" for name in ("fc1", "fc2")}
    pairs |= {"norm1": "layer_norm1", "norm2": "layer_norm2"}
    return {
        f"{prefix}{mine}.{kind}": f"{source}{theirs}.{kind}"
        for mine, theirs in pairs.items()
        for kind in ("weight", "bias")
    }


def _vision_keys(geometry: Geometry) -> tuple[dict[str, str], frozenset[str]]:
    mapped = {
        "tower.class_embedding": f"{TOWER}embeddings.class_embedding",
        "tower.patch_embedding.weight": f"{TOWER}embeddings.patch_embedding.weight",
        "tower.position_embedding": f"{TOWER}embeddings.position_embedding.weight",
    }
    for kind in ("weight", "bias"):
        mapped[f"tower.pre_norm.{kind}"] = f"{TOWER}pre_layrnorm.{kind}"  # CLIP's own spelling
        for name in ("linear_1", "linear_2"):
            mapped[f"projector.{name}.{kind}"] = f"{PROJECTOR}{name}.{kind}"
    unused = {f"{TOWER}post_layernorm.{kind}" for kind in ("weight", "bias")}
    for layer in range(geometry.vision.layers):
        keys = _vision_layer(f"tower.layers.{layer}.", f"{TOWER}encoder.layers.{layer}.")
        if layer < geometry.vision.layers_used:
            mapped |= keys
        else:
            unused |= set(keys.values())
    return mapped, frozenset(unused)


def _text_keys(geometry: Geometry) -> dict[str, str]:
    mapped = {"norm.weight": f"{TEXT}norm.weight", "output.weight": HEAD}
    for layer in range(geometry.text.layers):
        for theirs, mine in _TEXT_LAYER.items():
            mapped[f"layers.{layer}.{mine}.weight"] = f"{TEXT}layers.{layer}.{theirs}.weight"
    return mapped


def expected_keys(geometry: Geometry) -> KeyMap:
    """The key map of a checkpoint as transformers 5 saves it."""
    vision, unused = _vision_keys(geometry)
    return KeyMap(vision, _text_keys(geometry), f"{TEXT}embed_tokens.weight", unused)


def is_buffer(key: str) -> bool:
    """Index tables and frequencies that old `transformers` stored; they follow from the geometry."""
    return key.endswith(("position_ids", "rotary_emb.inv_freq"))


def map_keys(keys: Iterable[str], geometry: Geometry) -> KeyMap:
    """The key map for a checkpoint, with the file's own keys. Raises `CheckpointError` naming keys that are missing, that nothing explains, or
    that are two spellings of one tensor."""
    spelled: dict[str, list[str]] = {}
    for key in sorted(keys):
        if not is_buffer(key):
            spelled.setdefault(canonical(key), []).append(key)
    _refuse_original(spelled)
    twice = [names for names in spelled.values() if len(names) > 1]
    if twice:
        raise CheckpointError(
            "the checkpoint holds one tensor under two names",
            got=" and ".join(twice[0]) + (f", and {len(twice) - 1} more such tensors" if len(twice) > 1 else ""),
            expected="one spelling of each tensor: loaders take either",
            where="keys of the safetensors files",
            fix="remove the stale one: load the checkpoint with transformers, and save it again with save_pretrained",
        )
    wanted = expected_keys(geometry)
    found = {name: names[0] for name, names in spelled.items()} | _tied(wanted, spelled, geometry)
    missing = {_as_spelled(key, spelled) for key in wanted.used - found.keys()}
    unknown = {spelled[name][0] for name in spelled.keys() - wanted.used - wanted.unused}
    if missing or unknown:
        raise CheckpointError(
            "the checkpoint's tensors are not those of its config.json",
            got="; ".join(
                _listed(kind, names) for kind, names in (("missing", missing), ("unknown", unknown)) if names
            ),
            expected=f"{len(wanted.used)} tensors, each with one use",
            where="keys of the safetensors files",
            fix="check that config.json belongs to these weights, and that no key was renamed",
        )
    return KeyMap(
        {parameter: found[key] for parameter, key in wanted.vision.items()},
        {parameter: found[key] for parameter, key in wanted.text.items()},
        found[wanted.embedding],
        frozenset(found[key] for key in wanted.unused & found.keys()),
    )


def _tied(wanted: KeyMap, spelled: Mapping[str, Sequence[str]], geometry: Geometry) -> dict[str, str]:
    """What stands for a head or a table that a tied checkpoint leaves out; where both are there, `transformers` uses both."""
    if not geometry.text.tied or (HEAD in spelled) == (wanted.embedding in spelled):
        return {}
    there, absent = (HEAD, wanted.embedding) if HEAD in spelled else (wanted.embedding, HEAD)
    return {absent: spelled[there][0]}


def _as_spelled(key: str, spelled: Mapping[str, Sequence[str]]) -> str:
    """A missing key in the spelling of its part's other keys."""
    for part in (TOWER, PROJECTOR, TEXT):
        if key.startswith(part):
            sibling = next((name for name in spelled if name.startswith(part)), None)
            if sibling is not None:
                return spelled[sibling][0].removesuffix(sibling.removeprefix(part)) + key.removeprefix(part)
    return key


def _refuse_original(spelled: Mapping[str, Sequence[str]]) -> None:
    """Raise `CheckpointError` for tensors of the original LLaVA code: a bare Llama under `model.`, and `mm_projector`."""
    original = [name for name in spelled if _ORIGINAL.match(name)]
    if original:
        raise CheckpointError(
            "the checkpoint is in the layout of the original LLaVA code, not in Hugging Face's",
            got=_listed("tensors such as", frozenset(original), shown=2),
            expected=f"{TEXT}…, {TOWER}…, {PROJECTOR}…",
            where="keys of the safetensors files",
            fix=CONVERT,
        )


def _listed(kind: str, names: set[str] | frozenset[str], shown: int = 4) -> str:
    some = sorted(names)
    more = f" and {len(some) - shown} more" if len(some) > shown else ""
    return f"{kind} {', '.join(some[:shown])}{more}"
