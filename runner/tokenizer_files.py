"""The three tokenizer files, told apart by what is in them and read within bounds; the C++ runner has the same.

A file comes from anywhere: sizes are bounded before anything is read, and what is not supported is refused by name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from verifier.core.errors import RunnerError
from verifier.runner.constants import FILE_LIMIT_BYTES, FIRST_BYTE, PIECE_LIMIT_BYTES, VOCABULARY_LIMIT
from verifier.runner.file_kinds import describe
from verifier.runner.tokenizer_json import parse_json
from verifier.runner.vocabulary import BLANK, NotThisError, Spelling, Vocabulary, said

_EXPECTED = "tokenizer.bin, tokenizer.model (SentencePiece, BPE) or tokenizer.json (BPE)"
_FIX = "python -m verifier.export_llava --with-artifacts writes tokenizer.bin"


def read_vocabulary(path: Path) -> Vocabulary:
    """What a tokenizer file says, whatever its name. Raises `RunnerError` that says what the file is instead."""
    if not path.is_file():
        raise RunnerError("no such tokenizer", got=path, fix=_FIX)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
        return parse_vocabulary(data)
    except OSError as error:
        raise RunnerError("the tokenizer cannot be read", got=error, where=path) from error
    except NotThisError as error:
        got = f"{error} ({size} bytes)"
        what = "not a tokenizer.bin, tokenizer.model or tokenizer.json"
        raise RunnerError(what, got=got, expected=_EXPECTED, where=path, fix=_FIX) from error


def parse_vocabulary(data: bytes) -> Vocabulary:
    """The same of a file's bytes. Raises `NotThisError`."""
    if len(data) > FILE_LIMIT_BYTES:
        raise NotThisError(f"{describe(data)} of more than {FILE_LIMIT_BYTES >> 20} MiB")
    if data.lstrip(b" \t\r\n")[:1] == b"{":
        return parse_json(data)
    if _is_bin(data):
        return parse_bin(data)
    if data[:1] == b"\n" and data[2:3] == b"\n":  # field 1, a piece, whose field 1 is its text
        return parse_model(data)
    raise NotThisError(describe(data))


def _is_bin(data: bytes) -> bool:
    if len(data) < 16:
        return False
    count, bos, eos, longest = struct.unpack_from("<IIII", data)
    return bool(0 < count <= VOCABULARY_LIMIT and max(bos, eos) < count and 0 < longest <= PIECE_LIMIT_BYTES)


def parse_bin(data: bytes) -> Vocabulary:
    """`tokenizer.bin` as ExecuTorch's Llama runners read it: count, BOS, EOS, longest piece; then score, length, bytes of each."""
    count, bos, eos, _longest = struct.unpack_from("<IIII", data)
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 16
    for number in range(count):
        if at + 8 > len(data):
            raise NotThisError(f"a tokenizer.bin that ends after {number} of {count} pieces")
        score, size = struct.unpack_from("<fI", data, at)
        if size > PIECE_LIMIT_BYTES or not math.isfinite(score):
            raise NotThisError(f"a damaged tokenizer.bin: piece {number} has {size} bytes and the score {score:g}")
        if at + 8 + size > len(data):
            raise NotThisError(f"a tokenizer.bin that ends within piece {number} of {count}")
        pieces.append(data[at + 8 : at + 8 + size])
        scores.append(score)
        at += 8 + size
    # <unk>, <s> and </s> are never made from text; of equal pieces the first counts
    ids: dict[bytes, int] = {}
    for number, piece in enumerate(pieces[3:], start=3):
        ids.setdefault(piece, number)
    return Vocabulary(
        ids,
        {number: said(piece, b" ") for number, piece in enumerate(pieces) if number not in (bos, eos)},
        _by_score(ids, scores),
        Spelling(b" ", ((b"", b" "),)),
        bos,
        (eos,),
        {byte: FIRST_BYTE + byte for byte in range(256) if FIRST_BYTE + byte < count},
        unknown=0,
    )


def _by_score(ids: dict[bytes, int], scores: list[float]) -> Callable[[bytes, bytes], float | None]:
    def rank(left: bytes, right: bytes) -> float | None:
        number = ids.get(left + right)
        return None if number is None else -scores[number]

    return rank


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_MODEL_TYPES = {
    1: "a SentencePiece unigram model",
    3: "a SentencePiece word model",
    4: "a SentencePiece character model",
}


def parse_model(data: bytes) -> Vocabulary:
    """`tokenizer.model`: SentencePiece's protobuf. Pieces with score and type; what the trainer was told; what the normalizer does."""
    pieces: list[tuple[bytes, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in fields(data):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            pieces.append(_piece(value, len(pieces)))
            if len(pieces) > VOCABULARY_LIMIT:
                raise NotThisError(f"a SentencePiece model of more than {VOCABULARY_LIMIT} pieces")
        elif field == 2:
            trainer = dict(fields(value))
        elif field == 3:
            normalizer = dict(fields(value))
    kind = trainer.get(3, 1)
    if kind != 2:
        raise NotThisError(
            _MODEL_TYPES.get(kind if isinstance(kind, int) else 0, "a SentencePiece model of a kind unknown")
        )
    _refuse_normalizer(normalizer, trainer)
    ids: dict[bytes, int] = {}
    names: dict[bytes, int] = {}
    for number, (piece, _score, type_) in enumerate(pieces):
        if type_ == _UNUSED:
            raise NotThisError(f"a SentencePiece model with an unused piece, {number}: they are not supported")
        (ids if type_ in (_NORMAL, _USER_DEFINED) else names).setdefault(piece, number)
    bytes_ids = {byte: names[b"<0x%02X>" % byte] for byte in range(256) if b"<0x%02X>" % byte in names}
    unknown = next((number for number, piece in enumerate(pieces) if piece[2] == _UNKNOWN), None)
    ends = [names.get(_text(trainer, field, default)) for field, default in ((46, b"<s>"), (47, b"</s>"))]
    if unknown is None or ends[0] is None or ends[1] is None:
        raise NotThisError("a SentencePiece model without <unk>, BOS or EOS")
    prefix = ((b"", BLANK),) if normalizer.get(3, 1) else ()
    silent = {number for number, piece in enumerate(pieces) if piece[2] == _CONTROL}
    user_defined = sorted((p for p, _, type_ in pieces if type_ == _USER_DEFINED and p), key=lambda p: (-len(p), p))
    return Vocabulary(
        ids,
        {number: said(piece[0], BLANK) for number, piece in enumerate(pieces) if number not in silent},
        _by_score(ids, [score for _, score, _ in pieces]),
        Spelling(BLANK, (*prefix, (b" ", BLANK))),
        ends[0],
        (ends[1],),
        bytes_ids if trainer.get(35, 0) else {},
        unknown,
        user_defined=tuple(user_defined),
    )


def _text(spec: dict[int, int | bytes], field: int, default: bytes) -> bytes:
    value = spec.get(field, default)
    return value if isinstance(value, bytes) else default


def _refuse_normalizer(normalizer: dict[int, int | bytes], trainer: dict[int, int | bytes]) -> None:
    if normalizer.get(2, b""):
        name = _text(normalizer, 1, b"").decode(errors="replace") or "unnamed"
        raise NotThisError(f"a SentencePiece model with the normalizer {name}: only identity is supported")
    odd = [(normalizer.get(4, 1), "remove_extra_whitespaces"), (not normalizer.get(5, 1), "escape_whitespaces off")]
    for is_so, name in [*odd, (trainer.get(24, 0), "treat_whitespace_as_suffix")]:
        if is_so:
            raise NotThisError(f"a SentencePiece model with {name}, which is not supported")


def _piece(data: bytes, number: int) -> tuple[bytes, float, int]:
    said_ = dict(fields(data))
    text, bits, type_ = said_.get(1, b""), said_.get(2, b"\0\0\0\0"), said_.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(bits, bytes) or len(bits) != 4 or not isinstance(type_, int):
        raise NotThisError(f"a damaged SentencePiece model: piece {number} cannot be read")
    score = float(struct.unpack("<f", bits)[0])
    if not math.isfinite(score) or len(text) > PIECE_LIMIT_BYTES or type_ not in range(1, 7):
        raise NotThisError(
            f"a damaged SentencePiece model: piece {number} has {len(text)} bytes, the score {score:g} and type {type_}"
        )
    return text, score, type_


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protobuf message; numbers of fixed size as their bytes. Raises `NotThisError`."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise NotThisError("a damaged SentencePiece model: not a protobuf message")
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise NotThisError("a damaged SentencePiece model: not a protobuf message")
        if at + size > len(data):
            raise NotThisError("a SentencePiece model that ends too early")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise NotThisError("a SentencePiece model that ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise NotThisError("a damaged SentencePiece model: not a protobuf message")
