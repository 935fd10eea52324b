"""The tokenizer files that ship beside a program, read by ExecuTorch's own C++ tokenizers in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier.core.errors import UsageError
from verifier.core.python import child_command, child_environment
from verifier.families.tokens.spelling import BLANK, Format, Part, Pieces, own_spelling, read_pieces
from verifier.families.tokens.texts import texts
from verifier.runner.constants import FILE_LIMIT_BYTES
from verifier.runner.process import run_process

_TIMEOUT_S, _MEMORY_BYTES, _ANSWER_BYTES = 300.0, 8 << 30, 256 << 20
_CHECKPOINT_LIMIT = 4096
"""Entries of a folder that are looked at."""


@dataclass(frozen=True)
class ToShip:
    """The tokenizer files to check. `together` are those of a checkpoint's own folder: an app takes one of them."""

    files: tuple[Path, ...] = ()
    together: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the files, or `program` for the files of a checkpoint's folder."""
        return ("program",) if self.files and self.together else tuple(path.name for path in self.files)


def find_tokenizers(pte: Path, named: Path | None) -> ToShip:
    """The named file, else all that lie beside the program. Raises `UsageError` for a file that is not there."""
    if named is not None:
        if not named.is_file():
            fix = "give --tokenizer the tokenizer.bin, .model or .json that ships"
            raise UsageError("no such tokenizer file", got=named, fix=fix)
        return ToShip((named,))
    names = sorted(entry.name for entry, _ in zip(os.scandir(pte.parent), range(_CHECKPOINT_LIMIT), strict=False))
    files = [pte.parent / name for name in names if _is_tokenizer(name) and (pte.parent / name).is_file()]
    weights = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    return ToShip(tuple(files), together=weights and "config.json" in names)


def _is_tokenizer(name: str) -> bool:
    stem, _, suffix = name.lower().rpartition(".")
    return stem.endswith("tokenizer") and suffix in ("bin", "model", "json")


@dataclass(frozen=True)
class Shipped:
    """What ExecuTorch makes of a file. `reader` is the class that took it, "" if none did, `reasons` by reader why not. `ids` of the texts,
    `with_bos` of others with BOS in front, `printed` what a runner prints for each id: an error in words where a call failed, nothing behind
    a crash. `crash` says how the process ended if it did not come to its end, `problem` what kept it from being asked."""

    path: Path
    reader: str = ""
    reasons: dict[str, str] | None = None
    bos: int = -1
    eos: int = -1
    vocabulary: int = 0
    ids: tuple[tuple[int, ...] | str, ...] = ()
    with_bos: tuple[tuple[int, ...] | str, ...] = ()
    printed: tuple[str, ...] = ()
    crash: str = ""
    problem: str = ""


_FORMATS: dict[str, Format] = {"Llama2cTokenizer": "bin", "SPTokenizer": "model", "HFTokenizer": "json"}


@dataclass(frozen=True)
class TokenizerEvidence:
    """All files, and what they were asked: `texts`, then one text for each of the checkpoint's pieces, then the texts `behind` the image of the
    golden prompts; `before` are those in front of it, asked with BOS, which is `front`. `asked` ids were printed."""

    files: tuple[Shipped, ...]
    together: bool
    texts: tuple[str, ...]
    pieces_texts: tuple[str, ...]
    before: tuple[str, ...]
    behind: tuple[str, ...]
    front: list[int]
    pieces: Pieces
    asked: int

    def explained(self, file: Shipped, text: str) -> Part:
        """What a right file of the format gives for a text where it may part from the checkpoint."""
        format = _FORMATS.get(file.reader)
        if format is None:
            return Part(None, "")
        return self.pieces.explained(format, text, own_spelling(file.path) if format == "json" else None)


def ask_tokenizers(
    to_ship: ToShip, folder: Path, *, before: Sequence[str], behind: Sequence[str], front: list[int]
) -> TokenizerEvidence:
    """Ask every file about the checkpoint of a folder. Raises `CheckpointError`."""
    pieces = read_pieces(folder)
    inside = {number: piece.replace(BLANK, " ") for number, piece in sorted(pieces.names.items())}
    bytes_ = set(pieces.bytes_ids.values())
    # a line break in front: nothing is merged with it, and the format's own blank stands before it
    pieces_texts = tuple(f"\n{text}" for number, text in inside.items() if number not in bytes_ and "\0" not in text)
    asked = max(pieces.names, default=-1) + 1
    all_texts = (*texts(), *pieces_texts, *dict.fromkeys(behind))
    openings = tuple(dict.fromkeys(before))
    files = tuple(ask_tokenizer(path, all_texts, openings, asked) for path in to_ship.files)
    return TokenizerEvidence(
        files, to_ship.together, texts(), pieces_texts, openings, tuple(dict.fromkeys(behind)), front, pieces, asked
    )


def ask_tokenizer(path: Path, texts: Sequence[str], with_bos: Sequence[str], vocabulary: int) -> Shipped:
    """Have ExecuTorch read a file, encode texts, and print the first `vocabulary` ids."""
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        return Shipped(path, problem=f"the file has {size} bytes, more than {FILE_LIMIT_BYTES} are not read")
    with tempfile.TemporaryDirectory(prefix="verifier-tokenizer-") as name:
        request, answer = Path(name) / "request.json", Path(name) / "answer.jsonl"
        request.write_text(json.dumps({"texts": list(texts), "with_bos": list(with_bos), "vocabulary": vocabulary}))
        answer.touch()
        words = [*child_command("verifier.runner.shipped_tokenizer"), str(path.resolve()), str(request), str(answer)]
        ending = run_process(words, timeout_s=_TIMEOUT_S, env=child_environment(), memory_bytes=_MEMORY_BYTES)
        with answer.open(encoding="utf-8") as file:
            lines = file.read(_ANSWER_BYTES).split("\n")
    if ending.status == 2 or (ending.status == 1 and "Traceback" in ending.errors):
        told = ending.errors.strip().splitlines()[-1:]
        return Shipped(path, problem=f"ExecuTorch's tokenizers could not be run: {' '.join(told)}")
    crash = "" if ending.status == 0 else _how(ending.status)
    answers: list[Any] = [json.loads(line) for line in lines[:-1]]  # what follows the last line break was not finished
    if not answers:
        return Shipped(path, crash=crash or "it printed nothing")
    head, rest = answers[0], answers[1:]
    if not head["loaded"]:
        return Shipped(path, reasons=head["reasons"])
    bound = len(texts) + len(with_bos)
    return Shipped(
        path,
        head["loaded"],
        head["reasons"],
        head["bos"],
        head["eos"],
        head["vocabulary"],
        tuple(_ids(one) for one in rest[: len(texts)]),
        tuple(_ids(one) for one in rest[len(texts) : bound]),
        tuple(one if isinstance(one, str) else f"error: {one['error']}" for one in rest[bound:]),
        crash,
    )


def _ids(answer: Any) -> tuple[int, ...] | str:
    return str(answer["error"]) if isinstance(answer, dict) else tuple(answer)


def _how(status: int | None) -> str:
    if status is None:
        return f"it did not end within {_TIMEOUT_S:.0f} s"
    if status < 0:
        known = {one.value: one.name for one in signal.Signals}
        return f"it ended by {known.get(-status, -status)}"
    return f"it ended with exit status {status}"
