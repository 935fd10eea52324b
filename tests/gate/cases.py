"""Checkpoints as people have them: llava_tiny with one thing in another form, made anew for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

from verifier.families.checkpoint import EMBEDDED

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


def without_golden_data(folder: Path) -> Path:
    """Weights and tokenizer alone, as from a hub."""
    copy_of_llava_tiny(folder)
    for name in GOLDEN_DATA:
        (folder / name).unlink()
    shutil.rmtree(folder / "images")
    return folder
