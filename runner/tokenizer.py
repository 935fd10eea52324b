"""Text to ids and back, from `tokenizer.bin`, `tokenizer.model` or `tokenizer.json`; the C++ runner has the same.

The three files hold the same kind of tokenizer, byte pair encoding, and differ in what they say of it:

- `tokenizer.bin` (pieces and scores) and `tokenizer.model` (SentencePiece) put a blank before a text, and have no rule for what stands behind
  an image. There ExecuTorch's runners begin a new text, blank included, and so does this one.
- `tokenizer.json` (Hugging Face) has the rule: a `Prepend` normalizer puts a blank behind the image too, a `Metaspace` pre-tokenizer with
  `prepend_scheme` "first" does not.

A literal `<s>` or `<image>` in a text is text: only a runner feeds special tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.core.errors import RunnerError
from verifier.runner.tokenizer_files import read_vocabulary
from verifier.runner.vocabulary import Vocabulary

Rank = Callable[[bytes, bytes], float | None]
"""From two neighbours to the rank of their merge, the lowest first; None if they stay apart."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of one file. `bos` begins a sequence; each id in `eos` ends an answer."""

    vocabulary: Vocabulary

    @property
    def bos(self) -> int:
        """Id of the token that begins a sequence."""
        return self.vocabulary.bos

    @property
    def eos(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.vocabulary.eos

    def encode(self, text: str) -> list[int]:
        """Ids of a text at the start of a sequence, without BOS. Raises `RunnerError` for a text that is not Unicode."""
        return self._encode(text, first=True)

    def encode_behind(self, text: str) -> list[int]:
        """Ids of a text behind an image, as the file says; see above for files that do not."""
        return self._encode(text, first=False)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for special tokens and for ids that are not in the file."""
        return self.vocabulary.spoken.get(token, b"")

    def _encode(self, text: str, *, first: bool) -> list[int]:
        vocabulary = self.vocabulary
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise RunnerError("the text is not Unicode", got=error) from error
        ids: list[int] = []
        for number, stretch in _cut_at_added(data, vocabulary.added):
            if isinstance(stretch, int):
                ids.append(stretch)
                continue
            for word in vocabulary.spelling.words(stretch, first=first and number == 0):
                whole = vocabulary.ids.get(word) if vocabulary.whole_words else None
                ids += [whole] if whole is not None else self._word(word)
        return ids

    def _word(self, word: bytes) -> list[int]:
        vocabulary = self.vocabulary
        parts, fixed = _parts(word, vocabulary.user_defined)
        ids: list[int] = []
        for part in merged(parts, vocabulary.rank, fixed):
            number = vocabulary.ids.get(part)
            if number is not None:
                ids.append(number)
                continue
            spelled = [vocabulary.bytes_ids.get(byte) for byte in part]
            known = [one for one in spelled if one is not None]
            if spelled and len(known) == len(spelled):
                ids += known
            elif vocabulary.unknown is not None and not (vocabulary.fuse_unknown and ids[-1:] == [vocabulary.unknown]):
                ids.append(vocabulary.unknown)
        return ids


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file, whatever its name. Raises `RunnerError` that says what the file is instead."""
    return Tokenizer(read_vocabulary(path))


def characters(data: bytes) -> list[bytes]:
    """The UTF-8 characters of a text; a byte that begins none stands alone."""
    return [one.encode("utf-8", "surrogateescape") for one in data.decode("utf-8", "surrogateescape")]


def _cut_at_added(data: bytes, added: Sequence[tuple[bytes, int]]) -> list[tuple[int, bytes | int]]:
    """The stretches of a text between added tokens, and the ids of those, each with its place in the text; of two the longer."""
    if not added:
        return [(0, data)]
    stretches: list[tuple[int, bytes | int]] = []
    begun = at = 0
    while at < len(data):
        token = next(((content, number) for content, number in added if data.startswith(content, at)), None)
        if token is None:
            at += 1
            continue
        stretches += [(begun, data[begun:at]), (at, token[1])]
        at += len(token[0])
        begun = at
    return [*stretches, (begun, data[begun:])]


def _parts(word: bytes, user_defined: Sequence[bytes]) -> tuple[list[bytes], set[int]]:
    """Characters of a word, and whole pieces that the user defined, the longest first: those are never merged."""
    if not user_defined:
        return characters(word), set()
    parts: list[bytes] = []
    fixed: set[int] = set()
    at = 0
    while at < len(word):
        piece = next((one for one in user_defined if word.startswith(one, at)), None)
        if piece is None:
            piece = characters(word[at : at + 4])[0]
        else:
            fixed.add(len(parts))
        parts.append(piece)
        at += len(piece)
    return parts, fixed


def merged(parts: list[bytes], rank: Rank, fixed: set[int]) -> list[bytes]:
    """Join neighbours, the lowest rank first, the leftmost of equals, until none has a rank."""
    following = [*range(1, len(parts)), -1]
    before = list(range(-1, len(parts) - 1))
    left = list(parts)
    gone = [False] * len(parts)
    heap: list[tuple[float, int]] = []

    def rank_at(at: int) -> float | None:
        behind = following[at]
        return None if behind < 0 or at in fixed or behind in fixed else rank(left[at], left[behind])

    def offer(at: int) -> None:
        value = rank_at(at)
        if value is not None:
            heapq.heappush(heap, (value, at))

    for at in range(len(parts)):
        offer(at)
    while heap:
        value, at = heapq.heappop(heap)
        if gone[at] or rank_at(at) != value:
            continue  # one of the two was joined with another neighbour since
        behind = following[at]
        left[at] += left[behind]
        gone[behind] = True
        following[at] = following[behind]
        if following[at] >= 0:
            before[following[at]] = at
        if before[at] >= 0:
            offer(before[at])
        offer(at)
    return [part for part, absent in zip(left, gone, strict=True) if not absent]
