"""A recorded session, one JSON object a line: the head, then one line for each call of `generate`. docs/sessions.md describes the fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from verifier.core.errors import SessionError
from verifier.runner.constants import SESSION_SCHEMA
from verifier.runner.protocol import Array

SCHEMA = SESSION_SCHEMA
LIMIT_BYTES, MOST_TURNS, PIXELS_BYTES = 64 << 20, 1024, 64 << 20
T = TypeVar("T")
_HEAD = {"schema", "runtime", "device", "program_sha256", "tokenizer_sha256"}
_TURN = {"reset", "inputs", "settings", "prompt_tokens", "answer", "answer_ids", "error"}
_SETTINGS = {"temperature", "num_bos", "max_new_tokens", "seq_len"}


@dataclass(frozen=True)
class Fed:
    """One input: text or a picture. Of a text the `ids` that were fed, the `text` that they were made of, or both. Of a picture the file that the user chose, the `pixels` uint8 [3, h, w] that were fed, or both."""

    text: str | None = None
    ids: tuple[int, ...] | None = None
    picture: Path | None = None
    pixels: Array | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it is one."""
        return self.text is None and self.ids is None


@dataclass(frozen=True)
class Settings:
    """How the runner was told to answer. What is None was not recorded."""

    temperature: float | None = None
    num_bos: int | None = None
    max_new_tokens: int | None = None
    seq_len: int | None = None


@dataclass(frozen=True)
class Turn:
    """One call. `reset` if the runner was reset before it. `prompt_tokens` are the positions in use behind the prompt, as the runner counts them."""

    line: int
    reset: bool
    inputs: tuple[Fed, ...]
    settings: Settings
    answer: str | None
    answer_ids: tuple[int, ...] | None
    prompt_tokens: int | None
    error: str


@dataclass(frozen=True)
class Session:
    """A file: what it says of runtime, device, program and tokenizer, "" where it does not, and its turns."""

    runtime: str
    device: str
    program_sha256: str
    tokenizer_sha256: str
    turns: tuple[Turn, ...]


def read_session(path: Path) -> Session:
    """Read and check a file; pictures and pixels are found beside it. Raises `SessionError` that names line and field."""
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise SessionError(
                "the session is too large", got=path.stat().st_size, expected=f"at most {LIMIT_BYTES} bytes"
            )
        lines = path.read_text("utf-8").split("\n")  # not splitlines: JSON may have U+2028 in a string
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError("the session cannot be read", got=error, where=path) from error
    objects = [(number, _object(text, path, number)) for number, text in enumerate(lines, 1) if text.strip()]
    if not objects or objects[0][1].get("schema") != SCHEMA:
        got = objects[0][1].get("schema") if objects else "an empty file"
        raise SessionError(
            "not a recorded session", got=got, expected=f'a first line with "schema": "{SCHEMA}"', where=path
        )
    if not 1 < len(objects) <= MOST_TURNS + 1:
        raise SessionError(
            "no turn to judge", got=f"{len(objects) - 1} turns", expected=f"1 to {MOST_TURNS}", where=path
        )
    (_, head), *rest = objects
    fields = _Fields(head, path, objects[0][0], _HEAD)
    return Session(
        fields.optional("runtime", str) or "",
        fields.optional("device", str) or "",
        fields.optional("program_sha256", str) or "",
        fields.optional("tokenizer_sha256", str) or "",
        tuple(_turn(_Fields(one, path, number, _TURN)) for number, one in rest),
    )


def _object(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError("a line is not JSON", got=error, where=f"{path}, line {line}") from error
    if not isinstance(found, dict):
        raise SessionError("a line is no object", got=type(found).__name__, where=f"{path}, line {line}")
    return found


@dataclass(frozen=True)
class _Fields:
    """The fields of one object, of known names."""

    given: Mapping[str, Any]
    path: Path
    line: int
    known: set[str]

    def __post_init__(self) -> None:
        for name in sorted(self.given.keys() - self.known):
            raise self.error(name, "a field of another name", f"one of {', '.join(sorted(self.known))}")

    def error(self, name: str, got: object, expected: str) -> SessionError:
        """What is wrong with a field."""
        return SessionError(
            f"the field {name} cannot be used", got=got, expected=expected, where=f"{self.path}, line {self.line}"
        )

    def optional(self, name: str, kind: type[T]) -> T | None:
        """A value of a kind; None where there is none. A number may be an integer."""
        value: Any = self.given.get(name)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise self.error(name, repr(value)[:60], kind.__name__)
        return value

    def ids(self, name: str) -> tuple[int, ...] | None:
        """Ids of tokens."""
        value = self.optional(name, list)
        if value is None:
            return None
        if not all(type(one) is int and 0 <= one < 1 << 31 for one in value):
            raise self.error(name, repr(value)[:60], "ids of tokens, from 0 on")
        return tuple(value)


def _turn(fields: _Fields) -> Turn:
    inputs = fields.optional("inputs", list)
    if not inputs:
        raise fields.error("inputs", inputs, "a list of inputs")
    settings = _Fields(fields.optional("settings", dict) or {}, fields.path, fields.line, _SETTINGS)
    answer, ids, error = fields.optional("answer", str), fields.ids("answer_ids"), fields.optional("error", str) or ""
    if answer is None and ids is None and not error:
        raise fields.error("answer", None, "answer, answer_ids or error")
    return Turn(
        fields.line,
        bool(fields.optional("reset", bool)),
        tuple(_fed(one, fields) for one in inputs),
        Settings(
            settings.optional("temperature", float),
            settings.optional("num_bos", int),
            settings.optional("max_new_tokens", int),
            settings.optional("seq_len", int),
        ),
        answer,
        ids,
        fields.optional("prompt_tokens", int),
        error,
    )


def _fed(given: object, around: _Fields) -> Fed:
    if not isinstance(given, dict):
        raise around.error("inputs", type(given).__name__, "objects with text, ids, picture or pixels")
    fields = _Fields(given, around.path, around.line, {"text", "ids", "picture", "pixels"})
    text, ids = fields.optional("text", str), fields.ids("ids")
    picture, pixels = (fields.optional(name, str) for name in ("picture", "pixels"))
    if (text is not None or ids is not None) == (picture is not None or pixels is not None):
        raise around.error("inputs", sorted(given), "a text, its ids or both, or a picture, its pixels or both")
    folder = around.path.parent
    return Fed(
        text,
        ids,
        None if picture is None else folder / picture,
        None if pixels is None else _pixels(folder / pixels, fields),
    )


def _pixels(path: Path, fields: _Fields) -> Array:
    try:
        if path.stat().st_size > PIXELS_BYTES:
            raise ValueError(f"more than {PIXELS_BYTES} bytes")
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise fields.error("pixels", error, "a .npy file beside the session") from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3 or not array.size:
        raise fields.error("pixels", f"{array.dtype} {list(array.shape)}", "uint8 [3, h, w]")
    return array
