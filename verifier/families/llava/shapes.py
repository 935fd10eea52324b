"""The shape of every tensor that LLaVA needs, held against the headers of the weight files before anything is built of them."""

from __future__ import annotations

import torch

from verifier.families.checkpoint import Checkpoint
from verifier.families.geometry import Geometry, TextGeometry
from verifier.families.llava.keymap import map_keys
from verifier.families.llava.vision import VisionEncoder
from verifier.families.streaming import check_stored

Shape = tuple[int, ...]


def require_shapes(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for a tensor that is not of the shape that config.json asks for, or holds no floating-point numbers. Only headers are read."""
    geometry = checkpoint.geometry
    keys = map_keys(checkpoint.keys, geometry)
    text, vision = decoder_shapes(geometry.text), _encoder_shapes(geometry)
    wanted = [(name, key, text[name]) for name, key in keys.text.items()]
    wanted += [(name, key, vision[name]) for name, key in keys.vision.items()]
    wanted.append(("token_embedding", keys.embedding, (geometry.text.vocabulary, geometry.text.width)))
    for name, key, shape in wanted:
        check_stored(name, key, checkpoint.stored(key), shape)


def decoder_shapes(text: TextGeometry) -> dict[str, Shape]:
    """Those of the decoder's parameters by their names in the definition: linears are [out, in]."""
    width, queries, keys = text.width, text.heads * text.head_dim, text.kv_heads * text.head_dim
    layer: dict[str, Shape] = {
        "attention.wq": (queries, width),
        "attention.wk": (keys, width),
        "attention.wv": (keys, width),
        "attention.wo": (width, queries),
        "feed_forward.w1": (text.hidden, width),
        "feed_forward.w2": (width, text.hidden),
        "feed_forward.w3": (text.hidden, width),
        "attention_norm": (width,),
        "ffn_norm": (width,),
    }
    made: dict[str, Shape] = {"norm.weight": (width,), "output.weight": (text.vocabulary, width)}
    return made | {f"layers.{n}.{name}.weight": shape for n in range(text.layers) for name, shape in layer.items()}


def _encoder_shapes(geometry: Geometry) -> dict[str, Shape]:
    with torch.device("meta"):
        encoder = VisionEncoder(geometry)
    return {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
