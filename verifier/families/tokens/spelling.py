"""What a tokenizer file of each format can make of a text, if it holds the checkpoint's pieces.

The formats are not equal. `tokenizer.bin` and `tokenizer.model` put a blank before every text, one that begins with a blank too; `tokenizer.bin`
has no sign for a blank but a blank, so that a literal U+2581 becomes three bytes; neither knows the added tokens. `tokenizer.json` cuts a text
at the spelling of a special token. Where such a difference explains other ids than the checkpoint's own tokenizer gives, it is a property of
the format and not a fault of the file: the ids have to be exactly those that are computed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verifier.core.errors import CheckpointError, RunnerError
from verifier.core.records import JsonObject
from verifier.runner.constants import FILE_LIMIT_BYTES
from verifier.runner.tokenizer_files import parse_vocabulary
from verifier.runner.vocabulary import NotThisError, Spelling

BLANK = "\u2581"
Format = Literal["bin", "model", "json"]


@dataclass(frozen=True)
class Part:
    """Ids that a format gives, and why they are not the checkpoint's; "" where nothing explains a difference."""

    ids: list[int] | None
    why: str


@dataclass(frozen=True)
class Pieces:
    """The checkpoint's pieces and merges, without what stands before them. `raw` gives ids of a text in which blanks are U+2581 already;
    `special` are its added tokens; `bytes_ids` the ids of single bytes; `names` its pieces by id; `merges` pairs of pieces, first what is joined first."""

    raw: Callable[[str], list[int]] | None
    special: dict[str, int]
    bytes_ids: dict[int, int]
    names: dict[int, str]
    merges: tuple[tuple[str, str], ...] = ()
    with_special: Callable[[str], list[int]] | None = None

    def explained(self, format: Format, text: str, own: Spelling | None = None) -> Part:
        """What a right file of a format gives where it may part from the checkpoint; `own` is what a tokenizer.json does before its model."""
        if format == "bin" and not text:
            return Part(None, "empty (Llama2cTokenizer refuses it)")
        blank = text[:1] in (" ", BLANK)
        if format == "json":
            return self._json(text, blank, own)
        if self.raw is None:
            return Part(None, "")
        if format == "bin" and BLANK in text:
            marks = [self.bytes_ids[byte] for byte in BLANK.encode()] if self.bytes_ids else []
            head, *tail = f" {text}".split(BLANK)
            ids = self.raw(head.replace(" ", BLANK))
            for stretch in tail:
                ids += [*marks, *(self.raw(stretch.replace(" ", BLANK)) if stretch else ())]
            return Part(ids, "with U+2581 (three bytes in tokenizer.bin)")
        ids = self.raw((BLANK + text.replace(" ", BLANK)) if text else "")
        return Part(ids, "with a blank in front (the format puts another before it)" if blank else "")

    def _json(self, text: str, blank: bool, own: Spelling | None) -> Part:
        stretches = self._cut(text)
        marked = len(stretches) > 1
        why = "with a special token spelled out (tokenizer.json reads it as one)" if marked else ""
        why = why or ("with a blank in front" if blank else "")
        if self.raw is None or own is None:
            return Part(self.with_special(text) if self.with_special else None, why)
        ids: list[int] = []
        for number, stretch in enumerate(stretches):
            if isinstance(stretch, int):
                ids.append(stretch)
            else:
                for word in own.words(stretch.encode(), first=number == 0):
                    ids += self.raw(word.decode())
        return Part(ids, why)

    def _cut(self, text: str) -> list[str | int]:
        """The stretches of a text between spellings of special tokens, and the ids of those."""
        stretches: list[str | int] = [text]
        for spelled, number in sorted(self.special.items(), key=lambda item: -len(item[0])):
            cut: list[str | int] = []
            for stretch in stretches:
                if isinstance(stretch, int):
                    cut.append(stretch)
                    continue
                for at, part in enumerate(stretch.split(spelled)):
                    cut += [number, part] if at else [part]
            stretches = cut
        return stretches


def read_pieces(folder: Path) -> Pieces:
    """The pieces of a checkpoint: of tokenizer.json, else of tokenizer.model. Raises `CheckpointError`."""
    path = folder / "tokenizer.json"
    try:
        return _of_json(path) if path.is_file() else _of_model(folder / "tokenizer.model")
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise nothing more precise
        raise CheckpointError("the checkpoint's tokenizer cannot be read", got=error, where=folder) from error


def _of_json(path: Path) -> Pieces:
    import tokenizers

    data = json.loads(_bounded(path))
    added = {token["content"]: int(token["id"]) for token in data.get("added_tokens") or ()}
    whole = tokenizers.Tokenizer.from_str(json.dumps(data | {"truncation": None, "padding": None}))
    bare: JsonObject = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    alone = tokenizers.Tokenizer.from_str(json.dumps(data | bare | {"truncation": None, "padding": None}))
    names = {number: piece for piece, number in data["model"]["vocab"].items()} if _has_pieces(data) else {}
    return Pieces(
        (lambda text: list(alone.encode(text, add_special_tokens=False).ids)) if _like_sentencepiece(data) else None,
        added,
        _bytes_of(names),
        {number: piece for number, piece in names.items() if piece not in added},
        tuple(_pair(merge) for merge in data["model"].get("merges") or ()),
        lambda text: list(whole.encode(text, add_special_tokens=False).ids),
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _has_pieces(data: Any) -> bool:
    return isinstance(data["model"].get("vocab"), dict)


def _like_sentencepiece(data: Any) -> bool:
    """Whether U+2581 stands for a blank, and nothing else happens to a text before it is merged: what .bin and .model can hold."""
    try:
        spelling = parse_vocabulary(json.dumps(data).encode()).spelling
    except NotThisError:
        return False
    plain = {(b"", BLANK.encode()), (b" ", BLANK.encode())}
    return spelling.blank == BLANK.encode() and set(spelling.steps) <= plain


def _of_model(path: Path) -> Pieces:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    spelled = sentencepiece_model_pb2.ModelProto()
    spelled.ParseFromString(_bounded(path))
    spelled.normalizer_spec.add_dummy_prefix = False
    spelled.normalizer_spec.remove_extra_whitespaces = False
    bare = sentencepiece.SentencePieceProcessor(model_proto=spelled.SerializeToString())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    named = dict(enumerate(piece.piece for piece in spelled.pieces))
    known = {piece.piece for piece in spelled.pieces if piece.type == kinds.NORMAL}
    ranked = sorted((p for p in spelled.pieces if p.type == kinds.NORMAL), key=lambda piece: -piece.score)
    halves = ((p.piece[:at], p.piece[at:]) for p in ranked for at in range(1, len(p.piece)))
    silent = {i for i, piece in enumerate(spelled.pieces) if piece.type in (kinds.CONTROL, kinds.UNKNOWN)}
    return Pieces(
        lambda text: list(bare.encode(text)),
        {},
        _bytes_of(named),
        {number: piece for number, piece in named.items() if number not in silent},
        tuple((left, right) for left, right in halves if left in known and right in known),
    )


def _bytes_of(names: dict[int, str]) -> dict[int, int]:
    ids = {piece: number for number, piece in names.items()}
    return {byte: ids[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in ids}


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise CheckpointError("the tokenizer is too large", expected=f"<= {FILE_LIMIT_BYTES} bytes", where=path)
    return data


def own_spelling(path: Path) -> Spelling | None:
    """What a file that ships does to a text before its model, None where that is not understood here."""
    try:
        return parse_vocabulary(_bounded(path)).spelling
    except (NotThisError, RunnerError, CheckpointError, OSError):
        return None


def first_out_of_order(path: Path, merges: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first of the checkpoint's merges that a file does later than the next one, and that next one; None if there is none, or if the file
    is not understood here. A merge that a file does not know shows in the ids."""
    try:
        vocabulary = parse_vocabulary(_bounded(path))
    except (NotThisError, CheckpointError, OSError):
        return None
    blank = vocabulary.spelling.blank
    before, last = "", -math.inf
    for left, right in merges:
        rank = vocabulary.rank(*(part.replace(BLANK, blank.decode()).encode() for part in (left, right)))
        if rank is None:
            continue
        if rank < last:
            return before, left + right
        before, last = left + right, rank
    return None


def own_damage(path: Path) -> str:
    """What is damaged in a file although ExecuTorch loads it: a score that is no number, an end that is missing; "" if nothing is."""
    try:
        parse_vocabulary(_bounded(path))
    except NotThisError as error:
        return f"it is {error}" if " damaged " in str(error) or " ends " in str(error) else ""
    except (CheckpointError, OSError) as error:
        return str(error)
    return ""


def described(pieces: Sequence[int], names: dict[int, str]) -> str:
    """Ids with their pieces."""
    return ", ".join(f"{number} ({names.get(number, 'special or unknown')})" for number in pieces)
