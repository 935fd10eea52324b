"""Find, check, hash and stream a Hugging Face LLaVA-1.5 checkpoint.

Nothing here loads a whole model: tensors come one at a time from memory-mapped safetensors files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.errors import CheckpointError
from verifier.model.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = Path(__file__).parent / "embedded" / "llava_tiny"
_CONFIG_LIMIT_BYTES = 1 << 20
_INDEX_LIMIT_BYTES = 16 << 20
_HASH_BLOCK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, *, limit_bytes: int) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(
            f"the checkpoint has no {path.name}",
            where=path.parent,
            fix="give --model a folder in Hugging Face layout (config.json, model.safetensors, tokenizer.model, ...)",
        )
    size_bytes = path.stat().st_size
    if size_bytes > limit_bytes:
        raise CheckpointError(
            f"{path.name} is too large", got=f"{size_bytes} bytes", expected=f"<= {limit_bytes} bytes", where=path
        )
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is not JSON", got=error, where=path, fix="download or export it again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} is not a JSON object", got=type(data).__name__, where=path)
    return data


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout: its geometry, its files, and its tensors on demand."""

    directory: Path
    geometry: Geometry
    shards: tuple[Path, ...]
    config: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name, which stands for the model in reports."""
        return self.directory.resolve().name

    @cached_property
    def sha256(self) -> str:
        """Identity of the model: SHA-256 over the hashes of config and all weight files, in name order."""
        digest = hashlib.sha256()
        for path in (self.directory / "config.json", *self.shards):
            digest.update(f"{path.name} {sha256_of_file(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _locations(self) -> dict[str, Path]:
        from safetensors import SafetensorError, safe_open

        where: dict[str, Path] = {}
        for shard in self.shards:
            try:
                with safe_open(shard, "pt") as file:
                    keys = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{shard.name} is not a readable safetensors file",
                    got=error,
                    where=shard,
                    fix="copy or download the file again",
                ) from error
            where.update(dict.fromkeys(keys, shard))
        return where

    @property
    def keys(self) -> frozenset[str]:
        """Names of all tensors, with the spelling of the file."""
        return frozenset(self._locations)

    def tensor(self, key: str) -> Tensor:
        """One tensor, in the dtype of the file. Raises `CheckpointError` for an unknown name or damaged data."""
        from safetensors import SafetensorError, safe_open

        if key not in self._locations:
            raise CheckpointError(
                "the checkpoint lacks a tensor",
                got=f"{len(self._locations)} others",
                expected=key,
                where=self.directory,
            )
        shard = self._locations[key]
        try:
            with safe_open(shard, "pt") as file:
                tensor: Tensor = file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(
                f"tensor {key} cannot be read", got=error, where=shard, fix="copy or download the file again"
            ) from error
        return tensor

    def stream(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of `keys` one at a time; none is kept here."""
        for key in keys:
            yield key, self.tensor(key)


def _find_shards(directory: Path) -> tuple[Path, ...]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise CheckpointError(
            "the checkpoint has no weights",
            expected="model.safetensors or model.safetensors.index.json (pickled .bin files are not read)",
            where=directory,
            fix="convert the checkpoint to safetensors",
        )
    weight_map = read_json(index, limit_bytes=_INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=index)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise CheckpointError("the index names a file that is not beside it", got=name, where=index)
    return tuple(directory / name for name in names)


def open_checkpoint(model: str | Path | None = None) -> Checkpoint:
    """The checkpoint in a folder, the cached snapshot of a hub id, or the embedded llava_tiny for None.

    Raises `CheckpointError` if there is none, or if it is not LLaVA-1.5.
    """
    directory = EMBEDDED if model is None else Path(model)
    if not directory.is_dir() and model is not None:
        directory = _hub_snapshot(str(model))
    config = read_json(directory / "config.json", limit_bytes=_CONFIG_LIMIT_BYTES)
    checkpoint = Checkpoint(directory, Geometry.from_config(config), _find_shards(directory), config)
    checkpoint.keys  # noqa: B018  damaged files are refused here, not in the middle of an export
    return checkpoint


def _hub_snapshot(model: str) -> Path:
    """The local snapshot of a hub id; the network is asked only by huggingface_hub and only if it is allowed to."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
        return Path(snapshot_download(model, allow_patterns=patterns, local_files_only=model.count("/") != 1))
    except (OSError, ValueError, HFValidationError) as error:
        raise CheckpointError(
            "no such checkpoint",
            got=model,
            expected="a folder in Hugging Face layout, or the id of a model on the hub",
            fix="download the checkpoint and give --model its folder",
        ) from error
