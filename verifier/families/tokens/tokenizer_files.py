"""What a checkpoint's own files say about its tokenizer, read once and bounded in size; nothing is decided by a convention of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.checkpoint import read_json

TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
_JSON_LIMIT_BYTES = 64 << 20
"""tokenizer.json of a vocabulary of 256,000 pieces has 33 MB."""
_MODEL_LIMIT_BYTES = 16 << 20
_CONFIG_LIMIT_BYTES = 4 << 20
_DEFAULT_IMAGE_TOKEN = "<image>"
"""What `LlavaProcessor` of transformers takes if no file names another token."""


@dataclass(frozen=True)
class AddedToken:
    """A token that text is cut at before anything else: its spelling, and what it does to the text beside it."""

    content: str
    id: int | None = None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = True

    @classmethod
    def read(cls, data: Any, number: object = None) -> AddedToken:
        """From an entry of `added_tokens` or `added_tokens_decoder`. Raises `ValueError` for what is none."""
        if not isinstance(data, dict) or not isinstance(data.get("content"), str) or not data["content"]:
            raise ValueError(f"an added token is {str(data)[:80]!r}")
        flags = {name: data.get(name, False) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise ValueError(f"a flag of the added token {data['content']!r} is no boolean")
        return cls(data["content"], int(str(data.get("id") if number is None else number)), **flags)


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a folder that tokenize: `tokenizer` is tokenizer.json, None where there is none; the others are empty where there
    are none."""

    folder: Path
    tokenizer: JsonObject | None
    config: JsonObject
    special: JsonObject
    processor: JsonObject
    model_config: JsonObject
    model: bytes | None

    @property
    def source(self) -> str:
        """The file that decides."""
        return TOKENIZER_MODEL if self.tokenizer is None else TOKENIZER_JSON

    def named(self, name: str) -> str | None:
        """The spelling of a special token such as `bos_token`, None if no file names it."""
        for file in (self.config, self.special):
            said = file.get(name)
            said = said.get("content") if isinstance(said, dict) else said
            if isinstance(said, str) and said:
                return said
        return None

    def named_id(self, name: str) -> int | None:
        """The id of a special token as config.json gives it, for example `bos_token_id`; the first of several."""
        text = self.model_config.get("text_config")
        for config in (text if isinstance(text, dict) else {}, self.model_config):
            said = config.get(name)
            said = said[0] if isinstance(said, list) and said else said
            if isinstance(said, int) and not isinstance(said, bool):
                return said
        return None

    @property
    def image_token(self) -> str:
        """What stands for an image in text: the tokenizer's word for it, else the processor's."""
        extra = self.config.get("extra_special_tokens")
        files = (self.config, extra if isinstance(extra, dict) else {}, self.processor)
        said = [file.get("image_token") for file in files]
        said = [one.get("content") if isinstance(one, dict) else one for one in said]
        return next((one for one in said if isinstance(one, str) and one), _DEFAULT_IMAGE_TOKEN)

    def added_tokens(self) -> tuple[AddedToken, ...]:
        """The added tokens of tokenizer.json, then those of tokenizer_config.json. Raises `CheckpointError`."""
        try:
            own = [AddedToken.read(entry) for entry in (self.tokenizer or {}).get("added_tokens", [])]
            decoder = self.config.get("added_tokens_decoder") or {}
            return (*own, *(AddedToken.read(entry, number) for number, entry in sorted(decoder.items(), key=_number)))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError("the added tokens cannot be read", got=error, where=self.folder) from error


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _optional(path: Path, *, limit_bytes: int = _CONFIG_LIMIT_BYTES) -> JsonObject:
    return read_json(path, limit_bytes=limit_bytes) if path.is_file() else {}


def read_files(folder: Path) -> TokenizerFiles:
    """Read everything that tokenizes in a folder in Hugging Face layout. Raises `CheckpointError`."""
    model, tokenizer = folder / TOKENIZER_MODEL, folder / TOKENIZER_JSON
    if not model.is_file() and not tokenizer.is_file():
        raise CheckpointError(
            "the checkpoint has no tokenizer",
            expected="tokenizer.json, or tokenizer.model",
            where=folder,
            fix="copy it from the original checkpoint",
        )
    if model.is_file() and model.stat().st_size > _MODEL_LIMIT_BYTES:
        raise CheckpointError(
            "tokenizer.model is too large", got=model.stat().st_size, expected=f"<= {_MODEL_LIMIT_BYTES} bytes"
        )
    processor = _optional(folder / "preprocessor_config.json") | _optional(folder / "processor_config.json")
    return TokenizerFiles(
        folder=folder,
        tokenizer=read_json(tokenizer, limit_bytes=_JSON_LIMIT_BYTES) if tokenizer.is_file() else None,
        config=_optional(folder / "tokenizer_config.json"),
        special=_optional(folder / "special_tokens_map.json"),
        processor=processor,
        model_config=_optional(folder / "config.json"),
        model=model.read_bytes() if model.is_file() else None,
    )
