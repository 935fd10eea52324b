"""Write a session of ExecuTorch's own runner, as an app would record it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from verifier.runner.official import Input, Said, Step, Talk, Told
from verifier.runner.protocol import Array, program_hash
from verifier.sessions.records import SCHEMA
from verifier.sessions.session_file import SessionFile


def record_session(
    path: Path,
    talks: Sequence[tuple[Talk, Told]],
    pictures: Sequence[Array],
    *,
    pte: Path,
    tokenizer: Path,
    files: Mapping[int, Path],
) -> Path:
    """Append the calls of `generate` of some talks to a session, and write its pixels beside it.

    `pictures` are the pixels that the talks fed, uint8 [3, h, w]; `files` are the pictures that the user chose, by number.
    Raises `SessionError` if the session is of another program, or cannot be written.
    """
    head: dict[str, object] = {
        "schema": SCHEMA,
        "runtime": f"executorch {version('executorch')}, MultimodalRunner",
        "program_sha256": program_hash(pte),
        "tokenizer_sha256": program_hash(tokenizer),
    }
    session = SessionFile(path, head)
    session.check()
    pixels = [session.save_pixels(picture) for picture in pictures]
    fed = _Fed(pixels, {number: os.path.relpath(file, path.parent) for number, file in files.items()})
    for talk, told in talks:
        reset = False
        for step, said in zip(talk.steps, told.said, strict=False):
            reset = reset or step.call == "reset"
            if step.call == "generate":
                session.append(_turn(step, said, fed, reset=reset))
                reset = False
    return path


@dataclass(frozen=True)
class _Fed:
    """Files beside the session: the pixels by number, and the pictures that the user chose."""

    pixels: Sequence[str]
    pictures: Mapping[int, str]


def _turn(step: Step, said: Said, fed: _Fed, *, reset: bool) -> dict[str, object]:
    given = {
        "temperature": step.settings.temperature,
        "num_bos": step.settings.num_bos,
        "max_new_tokens": step.settings.max_new_tokens,
        "seq_len": step.settings.seq_len,
    }
    made: dict[str, object] = {
        "reset": reset,
        "inputs": [_input(one, fed) for one in step.inputs],
        "settings": {name: value for name, value in given.items() if value is not None},
    }
    if said.prompt_tokens >= 0:
        made["prompt_tokens"] = said.prompt_tokens
    if said.error:
        made["error"] = said.error
    else:
        made["answer"] = "".join(said.pieces).strip()
    return made


def _input(one: Input, fed: _Fed) -> dict[str, object]:
    if one.text is not None:
        return {"text": one.text}
    if one.ids is not None:
        return {"ids": list(one.ids)}
    assert one.picture is not None
    made: dict[str, object] = {"pixels": fed.pixels[one.picture]}
    if one.picture in fed.pictures:
        made["picture"] = fed.pictures[one.picture]
    return made
