"""The parts of LLaVA-1.5: its parameters in the order of the computation, and the blocks that checks have cases of."""

from __future__ import annotations

import re

from verifier.families.conventions import DECODER, EMBEDDING, ENCODER, module_of
from verifier.families.family import Parameter
from verifier.families.geometry import Geometry
from verifier.families.llava.keymap import KeyMap

TABLE = f"{EMBEDDING}.weight"
_TEXT_STAGES = (
    "attention_norm",
    "attention.w[qkv]",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w[13]",
    "feed_forward.w2",
)
_VISION_STAGES = ("norm1", "attention.[qkv]", "attention.out", "norm2", "fc1", "fc2")
_LAST = 1 << 20
_ENDS = {
    "tower.patch_embedding": (-2, 0),
    "tower.class_embedding": (-2, 0),
    "tower.position_embedding": (-2, 0),
    "tower.pre_norm": (-1, 0),
    "norm": (_LAST, 0),
    "output": (_LAST, 1),
    "projector.linear_1": (_LAST, 0),
    "projector.linear_2": (_LAST, 1),
}
"""Places of what stands before and behind the layers."""


def list_parameters(keys: KeyMap) -> tuple[Parameter, ...]:
    """Every parameter that reaches the program, in the order in which it is used."""
    found = [Parameter(TABLE, keys.embedding, (0, 0))]
    found += [Parameter(f"{ENCODER}.{name}", key, _order(name)) for name, key in keys.vision.items()]
    found += [Parameter(f"{DECODER}.{name}", key, _order(name)) for name, key in keys.text.items()]
    return tuple(found)


def _order(name: str) -> tuple[int, int]:
    """(layer, stage): what must come first in any program that computes LLaVA."""
    parts = name.split(".")
    if "layers" not in parts:
        return _ENDS[module_of(name)]
    at = parts.index("layers")
    inner = ".".join(parts[at + 2 : -1])
    stages = _VISION_STAGES if parts[0] == "tower" else _TEXT_STAGES
    return int(parts[at + 1]), next(i for i, stage in enumerate(stages) if _fits(stage, inner))


def _fits(stage: str, name: str) -> bool:
    if "[" not in stage:
        return stage == name
    head, _, letters = stage.partition("[")
    return name[:-1] == head and name[-1] in letters


def role_of(parameter: Parameter, rank: int) -> str:
    """What a constant that holds this parameter is used for; `rank` is that of its tensor."""
    if parameter.name.endswith(".bias"):
        return "bias"
    if "norm" in parameter.name.split(".")[-2]:
        return "norm weight"
    if parameter.name == TABLE:
        return "embedding"
    if parameter.name.endswith(("class_embedding", "position_embedding")):
        return "addend"
    return "convolution" if rank == 4 else "linear"


def list_blocks(geometry: Geometry) -> tuple[str, ...]:
    """Blocks of the model in the order of the computation."""
    # the projector is lowered into one delegate with the last layer's second half, and is judged with that layer
    vision = ["input", *(f"layers.{i}" for i in range(geometry.vision.layers_used))]
    text = [f"layers.{i}.{part}" for i in range(geometry.text.layers) for part in ("attention", "feed_forward")]
    return (
        *(f"{ENCODER}.{name}" for name in vision),
        EMBEDDING,
        f"{DECODER}.input",
        *(f"{DECODER}.{name}" for name in text),
        f"{DECODER}.output",
    )


def part_of(parameter: str) -> str:
    """The part of the model that holds a parameter: `text_decoder.layers.0.ffn_norm.weight` -> `text_decoder.layers.0.feed_forward`. It is a
    block, but for the projector."""
    method, _, rest = parameter.partition(".")
    if method == EMBEDDING:
        return method
    layer = re.search(r"layers\.\d+", rest)
    if method == ENCODER:
        return f"{method}.{layer[0] if layer else 'projector' if rest.startswith('projector') else 'input'}"
    if layer is None:
        return f"{method}.output"
    return f"{method}.{layer[0]}.{'feed_forward' if 'feed_forward' in rest or 'ffn_norm' in rest else 'attention'}"


def block_of(part: str, geometry: Geometry) -> str:
    """The block that a part is judged with: the last layer of the tower for the projector."""
    return f"{ENCODER}.layers.{geometry.vision.layers_used - 1}" if part == f"{ENCODER}.projector" else part
