"""Checkpoints as people have them: llava_tiny with one thing in another form, made anew for each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from verifier.checkpoint import EMBEDDED, open_checkpoint

FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "golden.json",
    "tolerances.json",
    "model.safetensors",
)
GOLDEN_DATA = ("golden.json", "tolerances.json")


def copy_of_llava_tiny(folder: Path) -> Path:
    """The checkpoint and its golden data, without the program."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(EMBEDDED / name, folder / name)
    shutil.copytree(EMBEDDED / "images", folder / "images")
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]) -> None:
    """Change the tensors; golden data is stamped as theirs."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})
    restamp(folder)


def restamp(folder: Path) -> None:
    """Golden data belongs to config and weights by SHA-256: say that it belongs to these."""
    digest = open_checkpoint(str(folder)).sha256
    for name in GOLDEN_DATA:
        edit(folder / name, lambda data: data.update(checkpoint_sha256=digest))


def without_golden_data(folder: Path) -> Path:
    """Weights and tokenizer alone, as from a hub."""
    copy_of_llava_tiny(folder)
    for name in GOLDEN_DATA:
        (folder / name).unlink()
    shutil.rmtree(folder / "images")
    return folder
