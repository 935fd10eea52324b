"""The process that runs ExecuTorch's own runner: `python -m verifier.runner.official_child FOLDER FIRST`. It may abort; its parent sees that.

`FOLDER` holds `request.json` and `picture_N.npy` (`verifier.runner.official` writes them). The talks from number `FIRST` on are held, and
`answer.jsonl` gets one line for each, so that a parent sees how far an abort came; `log.txt` gets what ExecuTorch logs. Exit status: 0 with all
answers; 2 if ExecuTorch's runner cannot be imported; anything else is a crash.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from verifier.core import upstream
from verifier.core.errors import UpstreamError
from verifier.core.system import die_with_parent
from verifier.runner.child import load_libraries
from verifier.runner.shipped_tokenizer import load

ANSWER, REQUEST, LOG = "answer.jsonl", "request.json", "log.txt"
TAIL = 300


def last_word(log: str) -> str:
    """The last thing that ExecuTorch logged, without the place in its source."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return (last.partition("] ")[2] or last)[-TAIL:]


class Talker:
    """ExecuTorch's `MultimodalRunner` on one program; each method answers with plain data."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        import torch

        load_libraries()
        self.api = upstream.MULTIMODAL_RUNNER.resolve()
        arrays = [np.load(folder / f"picture_{number}.npy") for number in range(asked["pictures"])]
        self.pictures = [torch.from_numpy(array) for array in arrays]
        self.asked, self.log = asked, folder / LOG
        self.runner: Any = None

    def start(self) -> dict[str, object]:
        """Load program and tokenizer; the error of one that is refused."""
        begun = time.perf_counter()
        try:
            self.runner = self.api.MultimodalRunner(self.asked["pte"], self.asked["tokenizer"])
        except (RuntimeError, ValueError) as error:
            return {"refused": str(error)}
        return {"refused": "", "load_s": time.perf_counter() - begun}

    def talk(self, steps: list[dict[str, Any]]) -> list[dict[str, object]]:
        """All steps of a talk; an error ends it."""
        said = []
        for step in steps:
            said.append(self.step(step))
            if said[-1]["error"]:
                break
        return said

    def step(self, step: dict[str, Any]) -> dict[str, object]:
        """One call of the runner."""
        pieces: list[str] = []
        counts: dict[str, object] = {"prompt_tokens": -1, "generated_tokens": -1}

        def on_token(piece: str) -> None:
            pieces.append(piece)
            if len(pieces) == step["stop_after"]:
                self.runner.stop()

        def on_stats(stats: Any) -> None:
            counts.update(prompt_tokens=stats.num_prompt_tokens, generated_tokens=stats.num_generated_tokens)

        begun, error, logged = time.perf_counter(), "", self.log.stat().st_size
        try:
            if step["call"] == "reset":
                self.runner.reset()
            elif step["call"] == "prefill":
                self.runner.prefill([self.given(one) for one in step["inputs"]])
            else:
                inputs = [self.given(one) for one in step["inputs"]]
                self.runner.generate(inputs, self.settings(step["settings"]), on_token, on_stats)
        except (RuntimeError, ValueError, TypeError) as failure:
            told = last_word(self.log.read_bytes()[logged:].decode(errors="replace"))
            error = ": ".join(word for word in (str(failure).splitlines()[0], told) if word)
        return {"pieces": pieces, "error": error, "seconds": time.perf_counter() - begun} | counts

    def given(self, one: dict[str, Any]) -> Any:
        """An input as the runner takes it."""
        if one["text"] is not None:
            return self.api.make_text_input(one["text"])
        if one["ids"] is not None:
            return self.api.make_token_input(one["ids"])
        return self.api.make_image_input(self.pictures[one["picture"]])

    def settings(self, given: dict[str, Any]) -> Any:
        """A `GenerationConfig` with its own defaults but for those that are given."""
        config = self.api.GenerationConfig()
        for name, value in given.items():
            if value is not None:
                setattr(config, name, value)
        return config


def main(arguments: list[str]) -> int:
    """Hold the talks of a request from a number on; print what each token is printed as first."""
    folder, first = Path(arguments[0]), int(arguments[1])
    asked = json.loads((folder / REQUEST).read_text("utf-8"))
    try:
        talker = Talker(folder, asked)
    except UpstreamError as error:
        print(error, file=sys.stderr)
        return 2
    with (folder / ANSWER).open("a", encoding="utf-8") as file, (folder / LOG).open("ab") as log:
        sys.stderr.flush()
        os.dup2(log.fileno(), 2)

        def tell(value: object) -> None:
            file.write(json.dumps(value) + "\n")
            file.flush()

        started = talker.start()
        if started["refused"]:
            tell(started)
            return 0
        if first == 0:
            tell(started | {"printed": _printed(asked["tokenizer"], asked["vocabulary"])})
        for number, talk in enumerate(asked["talks"][first:], first):
            tell({"talk": number, "said": talker.talk(talk["steps"])})
    return 0


def _printed(tokenizer: str, vocabulary: int) -> list[str]:
    """What a runner prints for each id: the piece behind another one."""
    reader, _, _ = load(tokenizer)
    return [_decoded(reader, token) for token in range(min(int(reader.vocab_size()), vocabulary))]


def _decoded(reader: Any, token: int) -> str:
    try:
        return str(reader.decode(token))
    except UnicodeDecodeError as error:
        return bytes(error.object).decode("utf-8", "surrogateescape")
    except (RuntimeError, ValueError) as error:
        return f"error: {error}"


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
