"""SentencePiece BPE from `tokenizer.bin`, as ExecuTorch's Llama runners read it; the C++ runner has the same."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

from verifier.errors import RunnerError

_VOCABULARY_LIMIT, _PIECE_LIMIT, _FIRST_BYTE = 1 << 20, 1 << 12, 3
_FIX = "python -m verifier.export_llava --with-artifacts writes one"


class BinTokenizer:
    """Pieces, scores, BOS and EOS of a `tokenizer.bin`. Raises `RunnerError` for a file that is none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunnerError("no such tokenizer", got=path, fix=_FIX)
        data = path.read_bytes()
        try:
            count, self.bos, self.eos, _longest = struct.unpack_from("<IIII", data)
            if not 0 < count <= _VOCABULARY_LIMIT or max(self.bos, self.eos) >= count:
                raise ValueError(f"{count} pieces")
            self.pieces: list[bytes] = []
            self.scores: list[float] = []
            at = 16
            for _ in range(count):
                score, size = struct.unpack_from("<fI", data, at)
                if size > _PIECE_LIMIT or at + 8 + size > len(data):
                    raise ValueError(f"a piece of {size} bytes")
                self.pieces.append(data[at + 8 : at + 8 + size])
                self.scores.append(score)
                at += 8 + size
        except (struct.error, ValueError) as error:
            raise RunnerError("not a tokenizer.bin", got=error, where=path, fix=_FIX) from error
        # <unk>, <s> and </s> are never made from text; of equal pieces the first counts
        self._ids: dict[bytes, int] = {}
        for number, piece in enumerate(self.pieces[3:], start=3):
            self._ids.setdefault(piece, number)

    def encode(self, text: str) -> list[int]:
        """Ids of a text at the start of a sequence: a blank in front, characters without a piece as bytes; no BOS."""
        parts = [character.encode() for character in f" {text}"] if text else []
        while len(parts) > 1:  # the best pair first, the leftmost of equals
            pairs = ((self._ids.get(a + b), at) for at, (a, b) in enumerate(pairwise(parts)))
            known = [(-self.scores[number], at) for number, at in pairs if number is not None]
            if not known:
                break
            _, at = min(known)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids: list[int] = []
        for part in parts:
            number = self._ids.get(part)
            ids += [_FIRST_BYTE + byte for byte in part] if number is None else [number]
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for BOS, EOS and ids outside the vocabulary."""
        if not 0 <= token < len(self.pieces) or token in (self.bos, self.eos):
            return b""
        piece = self.pieces[token]
        if len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">"):
            return bytes([int(piece[3:5], 16)])
        return piece
