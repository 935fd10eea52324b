"""The families that are known: a new one is a line here."""

from __future__ import annotations

from pathlib import Path

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from verifier.families.conventions import EXECUTORCH_LLAVA, Convention
from verifier.families.family import Family, Kind
from verifier.families.llava.family import Llava

FAMILIES: dict[str, Kind] = {"llava": Llava}
"""By `model_type` of config.json, or by it and the decoder's, as in "llava mistral", for a family with a decoder of its own."""


def open_checkpoint(model: str | Path | None = None) -> Checkpoint:
    """The checkpoint in a folder, the cached snapshot of a hub id, or the embedded llava_tiny for None.

    Raises `CheckpointError` if there is none, if it is of no family that is known, or if its files do not say which weights are meant. Whoever
    computes with its weights asks `require_usable` first.
    """
    directory, config = find_checkpoint(model)
    # what no family claims is read as LLaVA: its reader names the original layout, and the field that is another model's
    kind = _kind(config) or Llava
    return read_checkpoint(directory, kind.read_geometry(config), config)


def _kind(config: JsonObject) -> Kind | None:
    text, model = config.get("text_config"), str(config.get("model_type", "llava"))
    decoder = text.get("model_type") if isinstance(text, dict) else None
    return FAMILIES.get(f"{model} {decoder}", FAMILIES.get(model))


def open_family(checkpoint: Checkpoint, convention: Convention = EXECUTORCH_LLAVA) -> Family:
    """The family of a checkpoint, with programs of a convention. Raises `CheckpointError` for a checkpoint of no family."""
    kind = _kind(checkpoint.config)
    if kind is None:
        raise CheckpointError(
            "the model family is not known",
            got=checkpoint.config.get("model_type"),
            expected=", ".join(FAMILIES),
            where=checkpoint.directory,
        )
    return kind(checkpoint, convention)
