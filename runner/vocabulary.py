"""What every tokenizer file says, whatever its form: pieces, the ranks of merges, and what happens to a text before it is merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BLANK = "\u2581".encode()


class NotThisError(Exception):
    """Why a file cannot be used, in words for a reader."""


@dataclass(frozen=True)
class Spelling:
    """What happens to a text before it is merged: `steps` one after the other, (old, new) replaced, (b"", new) put in front; then, if there
    is a `scheme`, blanks become `blank`, with one in front "always", "first" at the start of a sequence only, or "never", unless the text
    begins with one; a `split` text is cut before every blank."""

    blank: bytes
    steps: tuple[tuple[bytes, bytes], ...] = ()
    scheme: str | None = None
    split: bool = False

    def words(self, data: bytes, *, first: bool) -> list[bytes]:
        """The stretches of a text that are merged each for itself."""
        if not data:
            return []
        for old, new in self.steps:
            data = data.replace(old, new) if old else new + data
        if self.scheme is not None:
            data = data.replace(b" ", self.blank)
            wanted = self.scheme == "always" or (self.scheme == "first" and first)
            if wanted and not data.startswith(self.blank):
                data = self.blank + data
        if not self.split:
            return [data]
        head, *tail = data.split(self.blank)
        return [word for word in (head, *(self.blank + one for one in tail)) if word]


@dataclass(frozen=True)
class Vocabulary:
    """What a file says. `ids` of the pieces that text can become, `spoken` the bytes that an id stands for; `rank` of the merge of two
    neighbours, the lowest first, None if they stay apart; `bytes_ids` for characters without a piece, else `unknown`."""

    ids: dict[bytes, int]
    spoken: dict[int, bytes]
    rank: Callable[[bytes, bytes], float | None]
    spelling: Spelling
    bos: int
    eos: tuple[int, ...]
    bytes_ids: dict[int, int]
    unknown: int | None = None
    fuse_unknown: bool = True
    whole_words: bool = False
    user_defined: tuple[bytes, ...] = ()
    added: tuple[tuple[bytes, int], ...] = ()
    """Tokens that text is cut at before anything else happens to it, the longest first."""


def said(piece: bytes, blank: bytes) -> bytes:
    """The bytes that a piece stands for: `<0x0A>` is one byte, a `blank` is a blank."""
    byte = byte_of(piece)
    return piece.replace(blank, b" ") if byte is None else bytes([byte])


def byte_of(piece: bytes) -> int | None:
    """The byte of a piece such as `<0x0A>`, None for another piece."""
    if len(piece) != 6 or not piece.startswith(b"<0x") or piece[5:] != b">":
        return None
    digits = piece[3:5]
    return int(digits, 16) if all(digit in b"0123456789ABCDEF" for digit in digits) else None
