"""A second way from text to ids, so that no library is believed alone: SentencePiece, or merges applied by hand.

What stands before the model (normalizer, pre-tokenizer) is read from tokenizer.json and carried out here, in Python. The pieces that come
of it go through SentencePiece where there is a tokenizer.model, else through the merges of tokenizer.json. Hugging Face's `tokenizers`, in
Rust, is not asked anything here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import regex
import sentencepiece

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.tokens.tokenizer_files import AddedToken, TokenizerFiles

BLANK = "\u2581"
_REGEX_S = 5.0
"""A pattern of the file may run for ever; no text that is tried here takes a millisecond."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Text = Callable[[str], str]
Cut = Callable[[str, bool], list[str]]
"""From a piece, and whether it begins the text, to pieces."""


class UnknownFormError(Exception):
    """A normalizer, pre-tokenizer or model that is not carried out here."""


class SecondEncoder:
    """Ids of a text with added tokens in it, without BOS."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            data = files.tokenizer or {}
            self._normalize = _normalizers(data.get("normalizer"), charsmap=files.model is not None)
            self._cut = _pre_tokenizers(data.get("pre_tokenizer"))
            self._model = _Merges(data.get("model")) if files.model is None else _Pieces(files.model)
        except UnknownFormError as error:
            raise CheckpointError(
                "no second encoder can confirm the ids of the checkpoint's tokenizer",
                got=error,
                expected="a normalizer, a pre-tokenizer and a model that a second encoder carries out too",
                where=files.folder,
                fix="put tokenizer.model beside tokenizer.json, or ask for this form to be added to verifier/families/tokens/second_encoder.py",
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, regex.error) as error:
            got = f"{type(error).__name__}: {error}"
            raise CheckpointError("tokenizer.json cannot be read", got=got, where=files.folder) from error

    @property
    def name(self) -> str:
        """Which encoder this is."""
        return self._model.name

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text at the start, as tokenizer.model alone has them."""
        assert isinstance(self._model, _Pieces)
        return self._model.spelled(text)

    def encode(self, parts: Sequence[str | AddedToken]) -> list[int]:
        """Ids of text with added tokens between."""
        texts = _joined(parts)
        for at, part in enumerate(texts):
            if isinstance(part, AddedToken):
                after, before = texts[at + 1 : at + 2], texts[max(0, at - 1) : at]
                if part.rstrip and after and isinstance(after[0], str):
                    texts[at + 1] = after[0].lstrip()
                if part.lstrip and before and isinstance(before[0], str):
                    texts[at - 1] = before[0].rstrip()
        ids: list[int] = []
        for at, text in enumerate(texts):
            if isinstance(text, AddedToken):
                assert text.id is not None
                ids.append(text.id)
            elif text and at == 0 and isinstance(self._model, _Pieces):
                ids += self._model.encode_whole(text)
            elif text:
                for piece in self._cut(self._normalize(text), at == 0):
                    ids += self._model.encode(piece)
        return ids


def _joined(parts: Sequence[str | AddedToken]) -> list[str | AddedToken]:
    """Text beside text is one text."""
    texts: list[str | AddedToken] = []
    for part in parts:
        before = texts[-1] if texts else None
        if isinstance(part, str) and isinstance(before, str):
            texts[-1] = before + part
        else:
            texts.append(part)
    return texts


class _Pieces:
    """tokenizer.model by Google's SentencePiece."""

    name = "SentencePiece on tokenizer.model"

    def __init__(self, model: bytes) -> None:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        spelled = sentencepiece_model_pb2.ModelProto()
        try:
            spelled.ParseFromString(model)
            self._whole = sentencepiece.SentencePieceProcessor(model_proto=model)
            spelled.normalizer_spec.add_dummy_prefix = False
            spelled.normalizer_spec.remove_extra_whitespaces = False
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=spelled.SerializeToString())
        except (RuntimeError, OSError, DecodeError) as error:
            raise CheckpointError("tokenizer.model is not a SentencePiece model", got=error) from error

    def encode(self, piece: str) -> list[int]:
        """Ids of a piece as it is: no blank in front, blanks spelled out."""
        return list(self._bare.encode(piece))

    def spelled(self, text: str) -> list[str]:
        """Pieces of a text at the start."""
        return list(self._whole.encode(text, out_type=str))

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text at the start, as the model itself says."""
        return list(self._whole.encode(text))


class _Merges:
    """The vocabulary and the merges of tokenizer.json, applied one after the other."""

    name = "the merges of tokenizer.json, applied by this verifier"

    def __init__(self, model: Any) -> None:
        if model is None or model.get("type", "BPE") != "BPE":
            raise UnknownFormError(f"the model {(model or {}).get('type')!r}")
        odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if odd:
            raise UnknownFormError(f"a model with {odd[0]}")
        self._ids: dict[str, int] = dict(model["vocab"])
        pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._bytes, self._whole = bool(model.get("byte_fallback")), bool(model.get("ignore_merges"))
        self._unknown, self._fuse = model.get("unk_token"), bool(model.get("fuse_unk"))

    def encode(self, piece: str) -> list[int]:
        """Ids of a piece: characters, joined by the merge that comes first as long as there is one."""
        if self._whole and piece in self._ids:
            return [self._ids[piece]]
        parts = [part for character in piece for part in self._character(character)]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair) for pair in pairwise(parts)]
            known = [rank for rank in ranks if rank is not None]
            if not known:
                break
            at = ranks.index(min(known))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        fused = (self._fuse and part == self._unknown and at and parts[at - 1] == part for at, part in enumerate(parts))
        return [self._ids[part] for part, again in zip(parts, fused, strict=True) if not again]

    def _character(self, character: str) -> list[str]:
        if character in self._ids:
            return [character]
        spelled = [f"<0x{byte:02X}>" for byte in character.encode()]
        if self._bytes and all(one in self._ids for one in spelled):
            return spelled
        return [] if self._unknown is None else [self._unknown]


def _normalizers(data: Any, *, charsmap: bool) -> Text:
    """What tokenizer.json does to the letters of a stretch of text. SentencePiece carries out its own `charsmap`."""
    if data is None:
        return lambda text: text
    kind = data["type"]
    if kind == "Sequence":
        steps = [_normalizers(each, charsmap=charsmap) for each in data["normalizers"]]
        return lambda text: _through(steps, text)
    if kind == "Prepend":
        prefix = str(data["prepend"])
        return lambda text: prefix + text if text else text
    if kind == "Replace":
        pattern, content = _pattern(data["pattern"]), str(data["content"])
        return lambda text: pattern.sub(lambda _match: content, text, timeout=_REGEX_S)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: unicodedata.normalize(kind, text)
    if kind == "Precompiled" and charsmap:
        return lambda text: text
    raise UnknownFormError(f"the normalizer {kind}")


def _through(steps: list[Text], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


def _pre_tokenizers(data: Any) -> Cut:
    """Where tokenizer.json cuts a stretch of text before its model sees it."""
    if data is None:
        return lambda text, _first: [text]
    kind = data["type"]
    if kind == "Sequence":
        steps = [_pre_tokenizers(each) for each in data["pretokenizers"]]
        return lambda text, first: _cut_through(steps, text, first)
    if kind == "Metaspace":
        return _metaspace(data)
    if kind == "Split":
        pattern, behavior, inverted = _pattern(data["pattern"]), data["behavior"], bool(data.get("invert"))
        if behavior != "Isolated" or inverted:
            raise UnknownFormError(f"the pre-tokenizer Split with {behavior}" + (", inverted" if inverted else ""))
        return lambda text, _first: _isolated(pattern, text)
    if kind == "ByteLevel":
        blank, split = bool(data.get("add_prefix_space", True)), bool(data.get("use_regex", True))
        return lambda text, _first: _byte_level(text, blank=blank, split=split)
    raise UnknownFormError(f"the pre-tokenizer {kind}")


def _cut_through(steps: list[Cut], text: str, first: bool) -> list[str]:
    pieces = [text]
    for step in steps:
        pieces = [cut for at, piece in enumerate(pieces) for cut in step(piece, first and at == 0)]
    return pieces


def _metaspace(data: JsonObject) -> Cut:
    blank = str(data.get("replacement", BLANK))
    scheme = data.get("prepend_scheme", "always" if data.get("add_prefix_space", True) else "never")
    split = bool(data.get("split", True))
    if scheme not in ("always", "first", "never"):
        raise UnknownFormError(f"Metaspace with prepend_scheme {scheme}")

    def cut(text: str, first: bool) -> list[str]:
        text = text.replace(" ", blank)
        if (scheme == "always" or (scheme == "first" and first)) and not text.startswith(blank):
            text = blank + text
        if not split:
            return [text]
        head, *tail = text.split(blank)
        return [piece for piece in (head, *(blank + each for each in tail)) if piece]

    return cut


def _byte_level(text: str, *, blank: bool, split: bool) -> list[str]:
    if blank and not text.startswith(" "):
        text = f" {text}"
    pieces = _isolated(_compiled(_GPT2), text) if split else [text]
    return ["".join(_byte_letters()[byte] for byte in piece.encode()) for piece in pieces]


@cache
def _byte_letters() -> list[str]:
    """The letter that GPT-2 gives to every byte: itself if it can be seen, else the next free one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(free)) for byte in range(256)]


def _isolated(pattern: Any, text: str) -> list[str]:
    """The matches of a pattern, and what lies between them."""
    pieces, at = [], 0
    for match in pattern.finditer(text, timeout=_REGEX_S):
        pieces += [text[at : match.start()], match.group()]
        at = match.end()
    return [piece for piece in (*pieces, text[at:]) if piece]


def _pattern(data: dict[str, str]) -> Any:
    return _compiled(data["Regex"]) if "Regex" in data else _compiled(regex.escape(data["String"]))


@cache
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)
