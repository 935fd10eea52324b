"""Write a session of ExecuTorch's own runner, as an app would record it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from verifier.runner.official import Input, Said, Step, Talk, Told
from verifier.runner.protocol import Array, program_hash
from verifier.sessions.records import SCHEMA


def record_session(
    path: Path,
    talks: Sequence[tuple[Talk, Told]],
    pictures: Sequence[Array],
    *,
    pte: Path,
    tokenizer: Path,
    files: Mapping[int, Path],
) -> Path:
    """Write the calls of `generate` of some talks, pixels beside them. `files` are the pictures that the user chose, by number."""
    stem = path.with_suffix("")
    head: dict[str, object] = {
        "schema": SCHEMA,
        "runtime": f"executorch {version('executorch')}, MultimodalRunner",
        "program_sha256": program_hash(pte),
        "tokenizer_sha256": program_hash(tokenizer),
    }
    lines: list[dict[str, object]] = [head]
    for number, picture in enumerate(pictures):
        np.save(f"{stem}-{number}.npy", picture)
    for talk, told in talks:
        reset = False
        for step, said in zip(talk.steps, told.said, strict=False):
            reset = reset or step.call == "reset"
            if step.call == "generate":
                lines.append(_turn(path, step, said, files, reset=reset))
                reset = False
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def _turn(path: Path, step: Step, said: Said, files: Mapping[int, Path], *, reset: bool) -> dict[str, object]:
    given = {
        "temperature": step.settings.temperature,
        "num_bos": step.settings.num_bos,
        "max_new_tokens": step.settings.max_new_tokens,
        "seq_len": step.settings.seq_len,
    }
    made: dict[str, object] = {
        "reset": reset,
        "inputs": [_input(path, one, files) for one in step.inputs],
        "settings": {name: value for name, value in given.items() if value is not None},
    }
    if said.prompt_tokens >= 0:
        made["prompt_tokens"] = said.prompt_tokens
    if said.error:
        made["error"] = said.error
    else:
        made["answer"] = "".join(said.pieces).strip()
    return made


def _input(path: Path, one: Input, files: Mapping[int, Path]) -> dict[str, object]:
    if one.text is not None:
        return {"text": one.text}
    if one.ids is not None:
        return {"ids": list(one.ids)}
    assert one.picture is not None
    made: dict[str, object] = {"pixels": f"{path.stem}-{one.picture}.npy"}
    if one.picture in files:
        made["picture"] = os.path.relpath(files[one.picture], path.parent)
    return made
