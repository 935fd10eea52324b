"""The safetensors files of a checkpoint: which ones are read, which tensors each holds, and one pass over all their bytes.

Format: github.com/huggingface/safetensors. 8 bytes of header length (u64, little endian), the header as JSON, the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.core.errors import CheckpointError
from verifier.core.files import refuse_stand_in
from verifier.core.records import JsonObject

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_BLOCK_BYTES = 1 << 20
_COPY_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: dtype as safetensors spells it, sizes, and its bytes from `begin` to `end` in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file; `tensors` in the order of their bytes."""

    path: Path
    tensors: tuple[Stored, ...]

    def tensor(self, name: str) -> Stored:
        """The entry of a tensor. Raises `KeyError`."""
        return next(t for t in self.tensors if t.name == name)


def read_shard(path: Path) -> Shard:
    """The header of a safetensors file, checked by the safetensors library. Raises `CheckpointError` for what is not a whole one."""
    from safetensors import SafetensorError, safe_open

    refuse_stand_in(path, CheckpointError)
    try:
        with safe_open(path, "pt"):  # checks names, dtypes, sizes and offsets against each other and against the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: JsonObject = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is not a readable safetensors file", got=error, where=path, fix=_COPY_AGAIN
        ) from error
    entries = [
        Stored(name, str(e["dtype"]), tuple(e["shape"]), *(8 + length + int(at) for at in e["data_offsets"]))
        for name, e in header.items()
        if name != "__metadata__"
    ]
    return Shard(path, tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end))))


def find_shards(directory: Path, index: Mapping[str, str] | None) -> tuple[Path, ...]:
    """The weight files that `transformers` loads: `model.safetensors` where there is one, else those of the index's weight map, in name
    order. Raises `CheckpointError`."""
    single = directory / SINGLE
    if single.is_file():
        return (single,)
    if index is None:
        pickled = sorted(path.name for path in directory.glob("*.bin") if path.name.startswith("pytorch_model"))
        loose = sorted(path.name for path in directory.glob("*.safetensors"))
        raise CheckpointError(
            "the checkpoint has no weights that are read",
            got=", ".join([*pickled, *loose][:4]) or "no weight file",
            expected=f"{SINGLE} or {INDEX} (pickled .bin files are not read: they can run code)",
            where=directory,
            fix="download the index too"
            if loose
            else "convert the checkpoint to safetensors: save_pretrained of transformers",
        )
    names = sorted(set(index.values()))
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise CheckpointError(
                "the index names a file that is not beside it",
                got=name,
                expected="every file of the weight map, in the same folder",
                where=directory / INDEX,
                fix="download the missing file",
            )
    return tuple(directory / name for name in names)


def locate_tensors(shards: Iterable[Shard], index: Mapping[str, str] | None) -> dict[str, Path]:
    """The file that holds each tensor. Raises `CheckpointError` for a tensor that two files hold with different contents (loaders take
    different ones: `transformers` the last file's, others the one that the index names), and for one that its file lacks."""
    held: dict[str, list[Shard]] = {}
    for shard in shards:
        for entry in shard.tensors:
            held.setdefault(entry.name, []).append(shard)
    for name, owners in held.items():
        for other in owners[1:]:
            _require_same(name, owners[0], other, named=(index or {}).get(name))
    wrong = [
        (name, file) for name, file in (index or {}).items() if file not in {s.path.name for s in held.get(name, ())}
    ]
    if wrong:
        name, file = wrong[0]
        raise CheckpointError(
            "the index names a tensor that its file does not hold",
            got=f"{name} is in {held[name][0].path.name}" if name in held else f"{name} is in no file",
            expected=f"{name} in {file}",
            where=INDEX,
            fix="download index and files of one revision again",
        )
    return {
        name: next((s.path for s in owners if s.path.name == (index or {}).get(name)), owners[0].path)
        for name, owners in held.items()
    }


def _require_same(name: str, first: Shard, second: Shard, *, named: str | None) -> None:
    if _same_contents(first, second, name):
        return
    raise CheckpointError(
        f"tensor {name} is in two files, with different contents",
        got=f"{first.path.name} and {second.path.name}" + (f"; the index names {named}" if named else ""),
        expected="one copy: transformers loads that of the last file, other loaders that of the index",
        where=first.path.parent,
        fix="remove the stale copy: save the checkpoint again with save_pretrained, into an empty folder",
    )


def require_one_set(single: Shard, others: Iterable[Shard], index: Mapping[str, str]) -> None:
    """Raise `CheckpointError` if `model.safetensors` and the files of an index beside it are two different sets of weights."""
    found = locate_tensors(others, index)
    by_path = {shard.path: shard for shard in others}
    names = {entry.name for entry in single.tensors}
    odd = sorted(names ^ found.keys()) or [
        name for name in sorted(names) if not _same_contents(single, by_path[found[name]], name)
    ]
    if odd:
        raise CheckpointError(
            f"the folder holds two sets of weights: {SINGLE}, and the files of {INDEX}",
            got=f"they differ in {len(odd)} tensors, first {odd[0]}",
            expected=f"one set: transformers loads {SINGLE}, other loaders the files of the index",
            where=single.path.parent,
            fix="remove the stale set",
        )


def _same_contents(first: Shard, second: Shard, name: str) -> bool:
    a, b = first.tensor(name), second.tensor(name)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with first.path.open("rb") as one, second.path.open("rb") as other:
        one.seek(a.begin)
        other.seek(b.begin)
        left = a.end - a.begin
        while left > 0:
            block = one.read(min(left, _BLOCK_BYTES))
            if not block or block != other.read(len(block)):
                return False
            left -= len(block)
    return True


@dataclass(frozen=True)
class NotFinite:
    """The first element of a tensor that is infinite or not a number."""

    tensor: Stored
    index: tuple[int, ...]
    value: str


@dataclass(frozen=True)
class Contents:
    """What one pass over a file's bytes gives: its SHA-256 in hex, and its first element that is not finite."""

    sha256: str
    not_finite: NotFinite | None


# (type of the stored bits, bits to look at, the least value of those that is not finite). IEEE 754: an exponent of ones is infinity or
# NaN. Float8: Micikevicius et al. 2022; E4M3 has no infinity, and NaN where exponent and mantissa are ones; UZ has NaN for -0 alone;
# E8M0 (OCP MX) has NaN for all ones.
_FORMATS: dict[str, tuple[str, int, int]] = {
    "F64": ("<u8", 0x7FF0000000000000, 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000, 0x7F800000),
    "F16": ("<u2", 0x7C00, 0x7C00),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F8_E5M2": ("<u1", 0x7C, 0x7C),
    "F8_E4M3": ("<u1", 0x7F, 0x7F),
    "F8_E8M0": ("<u1", 0xFF, 0xFF),
}
_NO_INFINITY = ("F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NEGATIVE_ZERO_IS_NAN = ("F8_E4M3FNUZ", "F8_E5M2FNUZ")


def read_contents(shard: Shard) -> Contents:
    """Read a file once: hash it, and look at every floating-point element on the way."""
    digest, first = hashlib.sha256(), None
    with shard.path.open("rb") as file:
        for entry in shard.tensors:
            _hash_until(file, digest, entry.begin)
            for offset, block in _blocks(file, entry):
                digest.update(block)
                if first is None and (at := _first_not_finite(entry.dtype, block)) is not None:
                    first = _describe(entry, offset, block, at)
        _hash_until(file, digest, None)
    return Contents(digest.hexdigest(), first)


def _hash_until(file: Any, digest: Any, end: int | None) -> None:
    while block := file.read(_BLOCK_BYTES if end is None else min(_BLOCK_BYTES, max(0, end - file.tell()))):
        digest.update(block)


def _blocks(file: Any, entry: Stored) -> Iterator[tuple[int, bytes]]:
    """Offset in the tensor and bytes; whole elements, because a block is a multiple of every element's size."""
    for offset in range(0, entry.end - entry.begin, _BLOCK_BYTES):
        yield offset, file.read(min(_BLOCK_BYTES, entry.end - entry.begin - offset))


def _bits(dtype: str, block: bytes) -> NDArray[Any]:
    stored = "<u1" if dtype in _NEGATIVE_ZERO_IS_NAN else _FORMATS[dtype][0]
    return np.frombuffer(block, np.dtype(stored), count=len(block) // np.dtype(stored).itemsize)


def _first_not_finite(dtype: str, block: bytes) -> int | None:
    """The place in a block of its first element that is not finite."""
    if dtype in _NEGATIVE_ZERO_IS_NAN:
        wrong = _bits(dtype, block) == 0x80
        return int(wrong.argmax()) if wrong.any() else None
    if dtype not in _FORMATS:
        return None
    _, mask, least = _FORMATS[dtype]
    exponents = _bits(dtype, block) & mask
    if exponents.size == 0 or exponents.max() < least:
        return None
    return int((exponents >= least).argmax())


def _describe(entry: Stored, offset: int, block: bytes, at: int) -> NotFinite:
    bits = _bits(entry.dtype, block)
    index = tuple(int(i) for i in np.unravel_index(offset // bits.itemsize + at, entry.shape)) if entry.shape else ()
    return NotFinite(entry, index, _value(entry.dtype, int(bits[at])))


def _value(dtype: str, bits: int) -> str:
    """`nan`, `inf` or `-inf`."""
    if dtype in _NO_INFINITY:
        return "nan"
    stored, _, infinity = _FORMATS[dtype]
    sign = 1 << (8 * np.dtype(stored).itemsize - 1)
    if bits & (sign - 1) != infinity:
        return "nan"
    return "-inf" if bits & sign else "inf"
