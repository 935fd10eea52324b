"""Write a made-up checkpoint: shards one after the other, an index, config, tokenizer and processor."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from verifier.core import upstream
from verifier.core.errors import UsageError
from verifier.core.files import replacing
from verifier.core.progress import Progress
from verifier.core.records import JsonObject
from verifier.families.checkpoint import EMBEDDED
from verifier.families.geometry import Geometry
from verifier.families.llava.geometry import read_geometry
from verifier.families.llava.prompt import DEFAULT_QUESTION, PROMPT
from verifier.families.prompts import caption_prompt
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.synth.weights import Maker

SHARD_BYTES = 400 << 20
"""What is held in memory of one shard; Hugging Face's own have 5 GB."""
_PUBLISHED = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Names of transformers 5, and those under which llava-hf/llava-1.5-7b-hf was published."""


def shapes_of(config: JsonObject) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, as `transformers` itself has them for a config; nothing is allocated."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published_name(name: str) -> str:
    """A tensor's name as in the published checkpoint."""
    for ours, theirs in _PUBLISHED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names by shard, in order, each of about `SHARD_BYTES` in bf16 and at least one tensor."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _tensors(maker: Maker, names: list[str], shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield published_name(name), maker.tensor(name, shapes[name]).to(torch.bfloat16)


def write_weights(folder: Path, maker: Maker, shapes: dict[str, tuple[int, ...]], progress: Progress) -> None:
    """Shards and `model.safetensors.index.json`; the index last, so that what is half-written is no checkpoint."""
    from safetensors.torch import save_file

    shards = _shards(shapes)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        with progress.stage(f"shard {number} of {len(shards)}"), replacing(path) as temporary:
            save_file(dict(_tensors(maker, names, shapes)), temporary, metadata={"format": "pt"})
        index |= {published_name(name): path.name for name in names}
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    text = {"metadata": {"total_size": total}, "weight_map": index}
    with replacing(folder / "model.safetensors.index.json") as temporary:
        temporary.write_text(json.dumps(text, indent=1) + "\n")


def write_tokenizer(folder: Path, geometry: Geometry) -> None:
    """llava_tiny's tokenizer with pieces behind it that no text has, up to the image token, and Hugging Face's files for it and for pictures."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers import AddedToken, LlamaTokenizer, LlavaProcessor

    pieces, vision = geometry.image_token_id, geometry.vision
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    own = len(model.pieces)
    if pieces < own:
        raise UsageError("the vocabulary is too small", got=f"image token {pieces}", expected=f"at least {own}")
    lowest = min(piece.score for piece in model.pieces)
    for number in range(own, pieces):
        model.pieces.add(piece=f"\u27e8{number}\u27e9", score=lowest - 1 - number)
    model.trainer_spec.vocab_size = pieces
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    made = LlamaTokenizer.from_pretrained(
        folder, legacy=False, add_bos_token=True, model_max_length=2048, padding_side="left"
    )
    added = [AddedToken(text, special=True, normalized=False) for text in ("<image>", "<pad>")]
    made.add_tokens(added, special_tokens=True)
    made.pad_token = "<pad>"
    image_processor = upstream.LLAVA_IMAGE_PROCESSOR.resolve().from_pretrained(
        EMBEDDED,
        size={"shortest_edge": vision.image_px},
        crop_size={"height": vision.image_px, "width": vision.image_px},
    )
    processor = LlavaProcessor(
        image_processor,
        made,
        patch_size=vision.patch_px,
        vision_feature_select_strategy="default",
        chat_template=(EMBEDDED / "chat_template.jinja").read_text(),
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)


def chain(tokenizer: Tokenizer, *, length: int, pieces: int, seed: int) -> dict[int, int]:
    """What follows what: behind the prompt an answer of `length` printable tokens and EOS, whatever the image is."""
    asked = caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION)
    generator = torch.Generator().manual_seed(seed)
    usable = [i for i in range(300, pieces) if i not in {*asked.before, *asked.after}]
    answer = [usable[int(i)] for i in torch.randperm(len(usable), generator=generator)[:length]]
    tokens = [asked.after[-1], *answer, tokenizer.eos_id]
    return dict(itertools.pairwise(tokens))


def write_checkpoint(folder: Path, config: JsonObject, *, seed: int, progress: Progress) -> None:
    """A whole checkpoint in Hugging Face layout, sharded bf16. Raises `VerifierError` subclasses, `OSError`."""
    if (folder / "model.safetensors.index.json").exists() or (folder / "model.safetensors").exists():
        raise UsageError("there is a checkpoint already", got=folder, fix="give --out an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    geometry = read_geometry(config)
    with progress.stage("tokenizer"):
        write_tokenizer(folder, geometry)
        tokenizer = Tokenizer(folder)
        following = chain(tokenizer, length=8, pieces=1024, seed=seed)
    shutil.copyfile(EMBEDDED / "generation_config.json", folder / "generation_config.json")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_weights(folder, Maker(geometry, seed=seed, following=following), shapes_of(config), progress)
