"""What transformers makes of a checkpoint's tokenizer: the reference of `splice.*`, and never what the verifier itself feeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verifier.core import upstream
from verifier.core.errors import CheckpointError


class ReferenceTokenizer:
    """`AutoTokenizer` of a folder, offline and without its code. Raises `CheckpointError` if transformers cannot load it."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # children are forked after this
        from transformers import AutoTokenizer

        upstream.TRANSFORMERS_LOGGING.resolve().set_verbosity_error()
        try:
            self._made: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (
            Exception
        ) as error:  # files of others: a KeyError, a TypeError and what Rust raises are among what was seen
            raise CheckpointError("Hugging Face cannot load the tokenizer", got=error, where=folder) from error

    @property
    def name(self) -> str:
        """Class and library."""
        return f"transformers' AutoTokenizer ({type(self._made).__name__})"

    def encode(self, text: str) -> list[int]:
        """Ids of a text with its special tokens, BOS as the tokenizer puts it."""
        return [int(i) for i in self._made(text)["input_ids"]]

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without anything around it."""
        return list(self._made.tokenize(text))

    def as_json(self) -> str:
        """The tokenizer as tokenizer.json would have it."""
        return str(self._made.backend_tokenizer.to_str())
