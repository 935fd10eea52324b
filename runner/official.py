"""ExecuTorch's own runner, `MultimodalRunner`: the C++ behind its Android and iOS apps. What it is told, and what it said.

It runs in a process of its own, talk after talk; one that aborts ends as an outcome, and the talks behind it are held by a new process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from verifier.core.errors import RunnerError
from verifier.core.python import child_command, child_environment
from verifier.core.upstream import requirement
from verifier.runner.exchange import signal_name
from verifier.runner.local import LocalRunner
from verifier.runner.official_child import ANSWER, LOG, REQUEST, last_word
from verifier.runner.process import run_process
from verifier.runner.protocol import Array

START_S = 120.0
MOST_ABORTS = 24
"""Processes that are started again: each takes two seconds."""
_LINES_BYTES, _LOG_BYTES = 256 << 20, 1 << 20


@dataclass(frozen=True)
class Input:
    """One of: a text, token ids, the number of a picture."""

    text: str | None = None
    ids: tuple[int, ...] | None = None
    picture: int | None = None


@dataclass(frozen=True)
class Settings:
    """Fields of a `GenerationConfig`; those that are None keep ExecuTorch's defaults: temperature 0.8, no BOS, the prompt echoed."""

    max_new_tokens: int | None = None
    seq_len: int | None = None
    num_bos: int | None = None
    temperature: float | None = 0.0
    echo: bool | None = False


@dataclass(frozen=True)
class Step:
    """One call of the runner. `stop_after`: so many pieces, `stop()` is called from the callback; never if 0."""

    call: Literal["reset", "prefill", "generate"] = "generate"
    inputs: tuple[Input, ...] = ()
    settings: Settings = field(default_factory=Settings)
    stop_after: int = 0


@dataclass(frozen=True)
class Talk:
    """Calls in their order, on a runner that has held the talks before."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Said:
    """What one call gave: the pieces of the answer, the positions in use behind the prompt, tokens behind the first; -1 if it did not say."""

    pieces: tuple[str, ...]
    prompt_tokens: int
    generated_tokens: int
    error: str
    seconds: float


@dataclass(frozen=True)
class Told:
    """What became of a talk. ok: every call returned. failed: the last one of `said` returned an error. aborted: the process died in it.
    timeout: it did not end in time. unheld: too many talks before it ended the process."""

    outcome: Literal["ok", "failed", "aborted", "timeout", "unheld"]
    said: tuple[Said, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Talks:
    """What became of all talks by name; `refused` says why the runner took neither program nor tokenizer. `printed` is what it prints for each id."""

    told: dict[str, Told]
    printed: tuple[str, ...] = ()
    refused: str = ""
    tokenizer: str = ""


class OfficialRunner(LocalRunner):
    """The `official` target: conversations by `MultimodalRunner`, single calls of methods by the `local` runtime, on the same file."""

    @property
    def name(self) -> str:
        """`official`."""
        return "official"


def hold_talks(
    pte: Path,
    tokenizer: Path,
    talks: Sequence[Talk],
    pictures: Sequence[Array],
    *,
    vocabulary: int,
    talk_s: float = 60.0,
) -> Talks:
    """Hold talks with ExecuTorch's runner on a program. `pictures` are uint8 [3, h, w], or fp32 [1, 3, h, w] for programs that take
    normalized pixels. Raises `RunnerError` if ExecuTorch's runner cannot be imported."""
    with tempfile.TemporaryDirectory(prefix="verifier-official-") as name:
        folder = Path(name)
        for number, picture in enumerate(pictures):
            np.save(folder / f"picture_{number}.npy", picture)
        request = {
            "pte": str(pte.resolve()),
            "tokenizer": str(tokenizer.resolve()),
            "pictures": len(pictures),
            "vocabulary": vocabulary,
            "talks": [asdict(talk) for talk in talks],
        }
        (folder / REQUEST).write_text(json.dumps(request))
        told, printed, refused = _hold(folder, len(talks), talk_s)
    unheld = Told("unheld", message=f"{MOST_ABORTS + 1} talks before it ended the process")
    by_name = {} if refused else {talk.name: told.get(number, unheld) for number, talk in enumerate(talks)}
    return Talks(by_name, printed, refused, tokenizer.name)


def _hold(folder: Path, count: int, talk_s: float) -> tuple[dict[int, Told], tuple[str, ...], str]:
    """What became of each talk, what tokens are printed as, and why there is none of both. A talk that ends the process is followed by a new one."""
    told: dict[int, Told] = {}
    printed: tuple[str, ...] = ()
    for _ in range(MOST_ABORTS + 1):
        first = len(told)
        died = _run(folder, first, START_S + talk_s * (count - first))
        lines = _lines(folder)
        head = next((line for line in lines if "talk" not in line), {})
        if head.get("refused") or (not head and first == 0):
            return {}, (), str(head.get("refused") or died.message)
        printed = tuple(head.get("printed", printed))
        told |= {line["talk"]: _told(line["said"]) for line in lines if "talk" in line}
        if len(told) == count:
            break
        told[len(told)] = died
    return told, printed, ""


def _run(folder: Path, first: int, timeout_s: float) -> Told:
    """Let a process hold the talks from a number on; what is to be said of the one that it did not end."""
    for name in (ANSWER, LOG):
        (folder / name).write_text("")
    words = [*child_command("verifier.runner.official_child"), str(folder), str(first)]
    ending = run_process(words, timeout_s=timeout_s, env=child_environment())
    with (folder / LOG).open(errors="replace") as file:
        log = file.read(_LOG_BYTES)
    if ending.status == 2 or (ending.status == 1 and "Traceback" in ending.errors + log):
        fix = f"pip install {requirement('executorch')}"
        raise RunnerError("ExecuTorch's own runner could not be run", got=last_word(ending.errors + log), fix=fix)
    if ending.status is None:
        return Told("timeout", message=f"it did not end within {timeout_s:.0f} s")
    how = f"exit status {ending.status}" if ending.status >= 0 else signal_name(-ending.status)
    return Told("aborted", message=f"{how}: {last_word(log)}")


def _lines(folder: Path) -> list[dict[str, Any]]:
    """What one process answered. What follows the last line break was not finished."""
    with (folder / ANSWER).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file.read(_LINES_BYTES).split("\n")[:-1]]


def _told(said: Sequence[Mapping[str, Any]]) -> Told:
    calls = tuple(
        Said(tuple(one["pieces"]), one["prompt_tokens"], one["generated_tokens"], one["error"], one["seconds"])
        for one in said
    )
    error = calls[-1].error if calls else ""
    return Told("failed" if error else "ok", calls, error)
