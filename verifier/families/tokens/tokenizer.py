"""The one owner of token ids: text to ids and back, as the checkpoint's own files say.

tokenizer.json decides, read by Hugging Face's `tokenizers` (a checkpoint with tokenizer.model alone is taken as transformers takes it).
What stands behind `<image>` and behind `</s>`, whether BOS stands in front, and which tokens are added comes from there. At opening a
second encoder has to give the same ids (`verifier.families.tokens.agreement`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.tokens.records import Mark, Part, PromptRule
from verifier.families.tokens.reference_tokenizer import ReferenceTokenizer
from verifier.families.tokens.second_encoder import SecondEncoder
from verifier.families.tokens.tokenizer_files import AddedToken, TokenizerFiles, read_files

_FENCE = "\ue000"
"""Private use: what a mark is spelled with inside this module, so that a user's own `<image>` stays text."""


class Tokenizer:
    """A checkpoint's tokenizer. Raises `CheckpointError` for one that cannot be read, or that makes no prompt that can be answered."""

    def __init__(self, folder: Path) -> None:
        self.files = read_files(folder)
        self._read = self._loaded()
        self._marked = self._loaded()
        self.bos_id, self.eos_id = self._special_id("bos_token"), self._special_id("eos_token")
        self.ends: tuple[int, ...] = (self.eos_id,)
        self.image_token = self.files.image_token
        self.image_id = self._image_id()
        self._prefix = self._in_front()
        self._added = {Mark.IMAGE: self._added_token(self.image_id), Mark.END: self._added_token(self.eos_id)}
        self._spelled = {mark: f"{_FENCE}{mark.value}{_FENCE}" for mark in Mark}
        self._marks = self._fenced()

    def _loaded(self) -> tokenizers.Tokenizer:
        """Hugging Face's tokenizer as the file has it, with the tokens that tokenizer_config.json adds, and nothing cut or padded."""
        try:
            if self.files.tokenizer is None:
                made = tokenizers.Tokenizer.from_str(self.reference.as_json())
            else:
                made = tokenizers.Tokenizer.from_str(json.dumps(self.files.tokenizer))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises nothing more precise
            raise CheckpointError(
                "tokenizer.json cannot be read by Hugging Face's tokenizers", got=error, where=self.files.folder
            ) from error
        made.no_truncation()
        made.no_padding()
        known = made.get_added_tokens_decoder()
        for token in self.files.added_tokens():
            there = known.get(token.id or 0)
            if there is None or any(getattr(there, name) != value for name, value in _flags(token).items()):
                made.add_tokens([tokenizers.AddedToken(**_flags(token))])
            if made.token_to_id(token.content) != token.id:
                raise CheckpointError(
                    "an added token has two ids",
                    got=f"{token.content} is {made.token_to_id(token.content)} in {self.files.source}",
                    expected=f"{token.id}, as the list of added tokens says",
                    where=self.files.folder,
                )
        return made

    @cached_property
    def reference(self) -> ReferenceTokenizer:
        """What transformers makes of the same files, loaded when it is first asked."""
        return ReferenceTokenizer(self.files.folder)

    @cached_property
    def second(self) -> SecondEncoder:
        """The other way from text to ids."""
        return SecondEncoder(self.files if self.files.tokenizer is not None else self._without_json())

    def _without_json(self) -> TokenizerFiles:
        return TokenizerFiles(**(vars(self.files) | {"tokenizer": json.loads(self.reference.as_json())}))

    def _special_id(self, name: str) -> int:
        spelled = self.files.named(name)
        found = self._read.token_to_id(spelled) if spelled is not None else self.files.named_id(f"{name}_id")
        if found is None:
            raise CheckpointError(
                f"no file says which token is the {name}",
                got=spelled,
                expected=f"{name} in tokenizer_config.json, and its piece in {self.files.source}",
                where=self.files.folder,
            )
        return int(found)

    def _image_id(self) -> int:
        found = self._read.token_to_id(self.image_token)
        if found is None:
            raise CheckpointError(
                f"the tokenizer has no {self.image_token}: the image's place in a text would be split into other pieces",
                expected=f"{self.image_token} among the added tokens of {self.files.source}",
                where=self.files.folder,
                fix="copy tokenizer.json and tokenizer_config.json from the original checkpoint",
            )
        return int(found)

    def _in_front(self) -> tuple[int, ...]:
        """What stands in front of every text: BOS or nothing.

        transformers 5 goes by the post-processor of tokenizer.json, transformers 4 by tokenizer_config.json: where the two part, nobody
        knows what the model was trained with.
        """
        plain, framed = (self._read.encode("a", add_special_tokens=special).ids for special in (False, True))
        at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), len(framed))
        front, behind = tuple(framed[:at]), tuple(framed[at + len(plain) :])
        if behind or front not in ((), (self.bos_id,)):
            raise CheckpointError(
                "the tokenizer adds tokens around every text that no prompt of LLaVA has",
                got=f"{[self.piece(i) for i in front]} in front, {[self.piece(i) for i in behind]} at the end",
                expected=f"{self.piece(self.bos_id)} in front or nothing, and nothing at the end",
                where=self.files.folder,
                fix="correct post_processor in tokenizer.json",
            )
        for name, does in (("add_bos_token", bool(front)), ("add_eos_token", False)):
            said = self.files.config.get(name)
            if said is not None and bool(said) != does:
                raise CheckpointError(
                    "tokenizer_config.json and tokenizer.json contradict each other",
                    got=f"{name} is {json.dumps(said)}",
                    expected=f"{json.dumps(does)}, as the post_processor of {self.files.source} does",
                    where=self.files.folder,
                    fix="take both files from the original checkpoint",
                )
        return front

    def _added_token(self, number: int) -> AddedToken:
        spelled = str(self._read.id_to_token(number))
        flags = self._read.get_added_tokens_decoder().get(number)
        token = AddedToken(spelled, number)
        if flags is None:  # transformers adds it then, and so it is cut at all the same
            return token
        token = AddedToken(
            spelled, number, **{n: getattr(flags, n) for n in ("lstrip", "rstrip", "single_word", "normalized")}
        )
        if token.single_word or token.normalized:
            odd = "single_word" if token.single_word else "normalized"
            raise CheckpointError(
                f"whether {spelled} is found depends on the text beside it",
                got=f"{odd}: true",
                expected="false for a token that marks a place in a conversation",
                where=self.files.folder,
            )
        return token

    def _fenced(self) -> dict[int, int]:
        """Add a spelling of each mark that no user writes, cut at as the real token is; which ids stand for which."""
        self._marked.encode_special_tokens = True
        for mark, token in self._added.items():
            flags = _flags(token) | {"content": self._spelled[mark], "special": False}
            self._marked.add_tokens([tokenizers.AddedToken(**flags)])
        real = {Mark.IMAGE: self.image_id, Mark.END: self.eos_id}
        ids = {mark: self._marked.token_to_id(spelled) for mark, spelled in self._spelled.items()}
        return {found: real[mark] for mark, found in ids.items() if found is not None}

    @property
    def adds_bos(self) -> bool:
        """Whether a prompt begins with BOS."""
        return bool(self._prefix)

    @cached_property
    def rule(self) -> PromptRule:
        """What was found."""
        ids = (self.encode("\n"), self.encode_behind("\n"), self.encode_behind("\n", Mark.END))
        pieces = [tuple(map(self.piece, each)) for each in ids]
        return PromptRule(self.files.source, self.adds_bos, *pieces)

    def encode_parts(self, parts: Iterable[Part], *, bos: bool = True) -> list[int]:
        """Ids of a whole text with marks in it, encoded once; `bos` puts in front what the tokenizer puts there."""
        given = list(parts)
        text = "".join(part if isinstance(part, str) else self._spelled[part] for part in given)
        ids = [self._marks.get(i, i) for i in self._marked.encode(text, add_special_tokens=False).ids]
        wanted, found = given.count(Mark.IMAGE), ids.count(self.image_id)
        if wanted != found:
            raise CheckpointError(
                "the tokenizer gives another number of image tokens than the text has",
                got=f"{found} of {text[-80:]!r}",
                expected=wanted,
                where=self.files.folder,
            )
        return [*(self._prefix if bos else ()), *ids]

    def encode(self, text: str) -> list[int]:
        """Ids of a text at the start of a sequence, without BOS."""
        return self.encode_parts([text], bos=False)

    def encode_behind(self, text: str, mark: Mark = Mark.IMAGE) -> list[int]:
        """Ids of a text behind a special token, with whatever the tokenizer puts between."""
        return self.encode_parts([mark, text], bos=False)[1:]

    def split_at_images(self, ids: Sequence[int]) -> tuple[tuple[int, ...] | None, ...]:
        """Ids between images, with None where an image goes."""
        segments: list[tuple[int, ...] | None] = []
        begun = 0
        for at, token in enumerate(ids):
            if token == self.image_id:
                segments += [tuple(ids[begun:at]), None]
                begun = at + 1
        return (*segments, tuple(ids[begun:]))

    def second_ids(self, parts: Sequence[Part]) -> list[int]:
        """What the second encoder makes of the same parts, without BOS."""
        return self.second.encode([part if isinstance(part, str) else self._added[part] for part in parts])

    def spelled(self, parts: Iterable[Part]) -> str:
        """The parts as one text, as a Hugging Face processor takes it."""
        return "".join(part if isinstance(part, str) else self._added[part].content for part in parts)

    def is_plain(self, text: str) -> bool:
        """Whether no special token is spelled in a text."""
        return not any(token.content in text for token in self._read.get_added_tokens_decoder().values())

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of ids; the first of `ends` and what follows it are dropped, the leading space too."""
        stop = next((at for at, token in enumerate(ids) if token in self.ends), len(ids))
        return str(self._read.decode([i for i in ids[:stop] if i >= 0], skip_special_tokens=True)).strip()

    def piece(self, id: int) -> str:
        """One token as the vocabulary spells it, with `\u2581` for a space; `<id>` beyond its end."""
        found = self._read.id_to_token(id) if id >= 0 else None
        return f"<{id}>" if found is None else str(found)


def _flags(token: AddedToken) -> JsonObject:
    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return {name: getattr(token, name) for name in names}
