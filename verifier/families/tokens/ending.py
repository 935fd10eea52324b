"""Which tokens end an answer, and which one begins a prompt, by everything in a checkpoint that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.checkpoint import read_json
from verifier.families.tokens.records import Statement

_LIMIT_BYTES = 1 << 20
_TOKENIZER_LIMIT_BYTES = 64 << 20


def end_ids(directory: Path, config: JsonObject, *, tokenizer_id: int) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's own first, then the others in rising order. Raises `CheckpointError`.

    `generate` of transformers stops at every `eos_token_id` of generation_config.json, and takes config.json's where there is none; a runner
    stops at every id of `get_eos_ids`. So the union is what may end an answer.
    """
    others = {id for said in end_statements(directory, config) for id in said.ids}
    return (tokenizer_id, *sorted(others - {tokenizer_id}))


def end_statements(directory: Path, config: JsonObject) -> tuple[Statement, ...]:
    """What config.json, its text_config, generation_config.json and tokenizer_config.json say of `eos_token`. Raises `CheckpointError`."""
    return _statements(directory, config, "eos")


def begin_statements(directory: Path, config: JsonObject) -> tuple[Statement, ...]:
    """The same of `bos_token`."""
    return _statements(directory, config, "bos")


def _statements(directory: Path, config: JsonObject, kind: str) -> tuple[Statement, ...]:
    field = f"{kind}_token_id"
    generation = _optional(directory / "generation_config.json", _LIMIT_BYTES)
    text = config.get("text_config")
    sections = {
        "config.json": config,
        "text_config of config.json": text if isinstance(text, dict) else {},
        "generation_config.json": generation,
    }
    found = [Statement(where, _ids(section.get(field), where, field)) for where, section in sections.items()]
    found.append(Statement("tokenizer_config.json", _by_name(directory, f"{kind}_token")))
    return tuple(said for said in found if said.ids)


def _optional(path: Path, limit_bytes: int) -> JsonObject:
    return read_json(path, limit_bytes=limit_bytes) if path.is_file() else {}


def _ids(value: object, where: str, field: str) -> tuple[int, ...]:
    """An id, a list of ids, or nothing; -1 stands for none in old files."""
    listed: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for id in listed:
        if isinstance(id, bool) or not isinstance(id, int):
            raise CheckpointError(
                f"{field} is not a token id",
                got=json.dumps(value)[:200],
                expected="an integer or a list of integers",
                where=where,
                fix="take the file from the original checkpoint",
            )
    return tuple(id for id in listed if id >= 0)


def _by_name(directory: Path, field: str) -> tuple[int, ...]:
    """The id of a token that tokenizer_config.json names by its text, looked up in tokenizer.json or in its own table."""
    settings = _optional(directory / "tokenizer_config.json", _LIMIT_BYTES)
    named = settings.get(field)
    text = named.get("content") if isinstance(named, dict) else named
    if not isinstance(text, str):
        return ()
    table = settings.get("added_tokens_decoder")
    if isinstance(table, dict):
        for id, token in table.items():
            if isinstance(token, dict) and token.get("content") == text and str(id).isdecimal():
                return (int(id),)
    tokenizer = _optional(directory / "tokenizer.json", _TOKENIZER_LIMIT_BYTES)
    for token in tokenizer.get("added_tokens") or ():
        if isinstance(token, dict) and token.get("content") == text and isinstance(token.get("id"), int):
            return (int(token["id"]),)
    return ()
