"""Forms in which the same tokenizer is published: what stands behind `<image>` differs, and nothing else tells it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

from verifier.core import upstream
from verifier.core.records import JsonObject

BLANK = "\u2581"


def rewrite(path: Path, change: Callable[[JsonObject], object]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def prepend(data: JsonObject) -> None:
    """Make a tokenizer.json put its blank in front of a text by a normalizer, as transformers 4 wrote it."""
    blanks = [
        {"type": "Prepend", "prepend": BLANK},
        {"type": "Replace", "pattern": {"String": " "}, "content": BLANK},
    ]
    data.update(normalizer={"type": "Sequence", "normalizers": blanks}, pre_tokenizer=None)


def write_bin(model: Path, path: Path) -> Path:
    """The tokenizer.bin that the exporter's --with-artifacts makes of a tokenizer.model."""
    upstream.LLAMA2C_TOKENIZER.resolve()(str(model)).export(str(path))
    return path


def read_bin(path: Path) -> tuple[bytes, list[bytes]]:
    """Head and pieces, with their scores, of a tokenizer.bin."""
    data, at = path.read_bytes(), 16
    pieces = []
    while at < len(data):
        size = 8 + struct.unpack_from("<I", data, at + 4)[0]
        pieces.append(data[at : at + size])
        at += size
    return data[:16], pieces


def as_transformers_4(folder: Path) -> None:
    """Rewrite tokenizer.json as transformers 4 wrote it, and as LLaVA-1.5-7B was published: the blank in front of a text is made by a
    normalizer, so that text behind a special token has one too."""
    rewrite(folder / "tokenizer.json", prepend)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(token["id"]): {key: token[key] for key in keys} for token in added},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "legacy": False,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
