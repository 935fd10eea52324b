"""Find, check, hash and stream a checkpoint in Hugging Face layout.

Nothing here loads a whole model: tensors come one at a time from memory-mapped safetensors files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.core.errors import CheckpointError
from verifier.core.files import refuse_stand_in, sha256_of_file
from verifier.core.records import JsonObject
from verifier.families.geometry import Geometry
from verifier.families.hub import hub_name, hub_snapshot
from verifier.families.shards import (
    INDEX,
    SINGLE,
    Contents,
    Shard,
    Stored,
    find_shards,
    locate_tensors,
    read_contents,
    read_shard,
    require_one_set,
)

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = Path(__file__).parents[1] / "embedded" / "llava_tiny"
_CONFIG_LIMIT_BYTES = 1 << 20
_INDEX_LIMIT_BYTES = 16 << 20
_QUANTIZED_BY = ("quantization_config", "compression_config")
"""What `transformers` reads: PretrainedConfig.quantization_config; compressed-tensors' older name of it."""
_SMALL_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.bin",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "golden.json",
    "tolerances.json",
)
"""Files of a checkpoint's folder besides config and weights that are read, if they are there."""


def read_json(path: Path, *, limit_bytes: int) -> JsonObject:
    """A JSON object from a file of bounded size. Raises `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(
            f"the checkpoint has no {path.name}",
            where=path.parent,
            fix="give --model a folder in Hugging Face layout (config.json, model.safetensors, tokenizer.model, ...)",
        )
    refuse_stand_in(path, CheckpointError)
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
    """A folder in Hugging Face layout: its geometry, its files, and its tensors on demand. `index` is the weight map, if it is what
    chose the `shards`."""

    directory: Path
    geometry: Geometry
    shards: tuple[Path, ...]
    config: JsonObject = field(repr=False)
    index: dict[str, str] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The folder's name, or the hub's for the model, which stands for it in reports."""
        folder = self.directory.resolve()
        return hub_name(folder) or folder.name

    @cached_property
    def _contents(self) -> dict[Path, Contents]:
        """Hash and first element that is not finite of every weight file: one pass over their bytes."""
        return {shard.path: read_contents(shard) for shard in self._read}

    @cached_property
    def sha256(self) -> str:
        """Identity of the model: SHA-256 over the hashes of config and all weight files, in name order."""
        digest, config = hashlib.sha256(), self.directory / "config.json"
        digest.update(f"{config.name} {sha256_of_file(config)}\n".encode())
        for path, contents in self._contents.items():
            digest.update(f"{path.name} {contents.sha256}\n".encode())
        return digest.hexdigest()

    def require_usable(self) -> None:
        """Raise `CheckpointError` for what no export of this checkpoint can be right about: settings that have `transformers` quantize the
        weights when it loads them, and weights that are not finite numbers."""
        for section, name, value in _quantization_settings(self.config):
            raise CheckpointError(
                "config.json asks for quantized weights",
                got=f"{section}{name}: {json.dumps(value)[:200]}",
                expected="a checkpoint of plain floating-point weights",
                where=self.directory / "config.json",
                fix=f"if the weights are the original ones, remove {name} from config.json; if they were quantized, give --model the "
                "original checkpoint",
            )
        for path, contents in self._contents.items():
            if (found := contents.not_finite) is not None:
                raise CheckpointError(
                    f"a weight is not a finite number: {found.tensor.name}",
                    got=f"{found.value} at {list(found.index)}",
                    expected=f"finite numbers ({found.tensor.dtype} {list(found.tensor.shape)})",
                    where=path,
                    fix="download the file again; if the trained model has it, it overflowed when it was saved in half precision: save it again in fp32 or bf16",
                )

    @cached_property
    def _read(self) -> tuple[Shard, ...]:
        return tuple(read_shard(path) for path in self.shards)

    @cached_property
    def _locations(self) -> dict[str, Path]:
        return locate_tensors(self._read, self.index)

    @property
    def keys(self) -> frozenset[str]:
        """Names of all tensors, with the spelling of the file."""
        return frozenset(self._locations)

    def stored(self, key: str) -> Stored:
        """The entry of a tensor in the header of its file. Raises `CheckpointError` for an unknown name."""
        path = self._place(key)
        return next(shard for shard in self._read if shard.path == path).tensor(key)

    def _place(self, key: str) -> Path:
        if key not in self._locations:
            raise CheckpointError(
                "the checkpoint lacks a tensor",
                got=f"{len(self._locations)} others",
                expected=key,
                where=self.directory,
            )
        return self._locations[key]

    def tensor(self, key: str) -> Tensor:
        """One tensor, in the dtype of the file. Raises `CheckpointError` for an unknown name or damaged data."""
        from safetensors import SafetensorError, safe_open

        shard = self._place(key)
        try:
            with safe_open(shard, "pt") as file:
                tensor: Tensor = file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(
                f"tensor {key} cannot be read", got=error, where=shard, fix="copy or download the file again"
            ) from error
        return tensor


def _quantization_settings(config: JsonObject, section: str = "") -> Iterator[tuple[str, str, object]]:
    """Section, name and value of every setting by which `transformers` quantizes a model when it loads it, nested ones too."""
    for name, value in config.items():
        if name in _QUANTIZED_BY and value is not None:
            yield section, name, value
        elif isinstance(value, dict):
            yield from _quantization_settings(value, f"{section}{name}.")


def _read_index(directory: Path) -> dict[str, str] | None:
    """The weight map, None without one. Raises `CheckpointError`."""
    path = directory / INDEX
    if not path.is_file():
        return None
    weight_map = read_json(path, limit_bytes=_INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "the index has no weight_map", where=path, fix="download it again, or save the checkpoint again"
        )
    return {str(name): str(file) for name, file in weight_map.items()}


def _require_one_set(directory: Path, index: dict[str, str]) -> None:
    """Refuse a stale `model.safetensors` beside an index with other weights, or the other way around. An index whose files are gone
    names nothing that could be loaded."""
    names = sorted(set(index.values()))
    if names == [SINGLE] or not all(Path(name).name == name and (directory / name).is_file() for name in names):
        return
    require_one_set(read_shard(directory / SINGLE), [read_shard(directory / name) for name in names], index)


def find_checkpoint(model: str | Path | None) -> tuple[Path, JsonObject]:
    """Folder and configuration of a checkpoint in a folder, of the cached snapshot of a hub id, or of the embedded llava_tiny for None.

    Raises `CheckpointError` if there is none.
    """
    directory = EMBEDDED if model is None else Path(model)
    if not directory.is_dir() and model is not None:
        directory = _named(str(model))
    config = read_json(directory / "config.json", limit_bytes=_CONFIG_LIMIT_BYTES)
    for name in _SMALL_FILES:
        refuse_stand_in(directory / name, CheckpointError)
    return directory, config


def read_checkpoint(directory: Path, geometry: Geometry, config: JsonObject) -> Checkpoint:
    """The checkpoint in a folder. Raises `CheckpointError` if its files do not say which weights are meant."""
    index = _read_index(directory)
    shards = find_shards(directory, index)
    if index is not None and shards == (directory / SINGLE,):
        _require_one_set(directory, index)
        index = None
    checkpoint = Checkpoint(directory, geometry, shards, config, index)
    checkpoint.keys  # noqa: B018  damaged files are refused here, not in the middle of an export
    return checkpoint


def _named(model: str) -> Path:
    """The folder of a model that is no folder here. Raises `CheckpointError`."""
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(
            "no such checkpoint",
            got=model,
            expected="a folder in Hugging Face layout, or the id ORG/NAME of a model on the hub",
            fix="download the checkpoint and give --model its folder",
        )
    return hub_snapshot(model)
