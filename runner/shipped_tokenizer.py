"""The process that reads an untrusted tokenizer file: `python -m verifier.runner.shipped_tokenizer FILE REQUEST ANSWER`.

It loads the file as ExecuTorch's runners do, by trying one C++ reader after the other, and answers line by line, so that a parent sees how far
an abort came. Exit status: 0 with all answers; 2 if the readers cannot be imported; anything else is a crash.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verifier.core import upstream
from verifier.core.errors import UpstreamError
from verifier.core.system import die_with_parent

READERS = ("HFTokenizer", "Tiktoken", "SPTokenizer", "Llama2cTokenizer")
"""In the order of `load_tokenizer` in ExecuTorch's extension/llm/runner; before them Tekken, for a file of the name tekken.json alone."""
_TAIL = 400


def load(path: str) -> tuple[Any, str, dict[str, str]]:
    """The first reader that takes the file, its name, and why others did not; None and "" if none does."""
    readers = upstream.TOKENIZERS.resolve()
    reasons: dict[str, str] = {}
    for name in (("Tekken",) if path.endswith("tekken.json") else ()) + READERS:
        reader = getattr(readers, name)()
        with _Heard() as heard:
            try:
                reader.load(path)
            except (RuntimeError, ValueError) as error:
                reasons[name] = str(error)
        if name not in reasons:
            return reader, name, reasons
        reasons[name] = heard.text or reasons[name]
    return None, "", reasons


class _Heard:
    """What C++ writes to stderr meanwhile, its last line."""

    text = ""

    def __enter__(self) -> _Heard:
        self._file = tempfile.TemporaryFile()
        sys.stderr.flush()
        self._before = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        self._file.seek(0)
        lines = self._file.read(1 << 16).decode(errors="replace").split("\n")
        told = [line.partition("] ")[2] or line for line in lines if line.strip() and "It is likely that" not in line]
        self.text = " ".join(told[-1:])[-_TAIL:]
        self._file.close()


def main(arguments: list[str]) -> int:
    """Answer a request: `texts` to ids, `with_bos` too, and what each of the first `vocabulary` ids is printed as."""
    die_with_parent()
    path, request, answer = arguments
    asked = json.loads(Path(request).read_text("utf-8"))
    try:
        reader, name, reasons = load(path)
    except UpstreamError as error:
        print(error, file=sys.stderr)
        return 2
    with Path(answer).open("w", encoding="utf-8") as file:

        def tell(value: object) -> None:
            file.write(json.dumps(value) + "\n")
            file.flush()

        if reader is None:
            tell({"loaded": "", "reasons": reasons})
            return 0
        size = int(reader.vocab_size())
        numbers = {"bos": int(reader.bos_tok()), "eos": int(reader.eos_tok()), "vocabulary": size}
        tell({"loaded": name, "reasons": reasons} | numbers)
        for text in asked["texts"]:
            tell(_tried(lambda text=text: list(reader.encode(text, 0, 0))))  # type: ignore[misc]
        for text in asked["with_bos"]:
            tell(_tried(lambda text=text: list(reader.encode(text, 1, 0))))  # type: ignore[misc]
        for token in range(min(size, asked["vocabulary"])):
            tell(_tried(lambda token=token: _printed(reader, token)))  # type: ignore[misc]
    return 0


def _printed(reader: Any, token: int) -> str:
    try:
        return str(reader.decode(token))
    except UnicodeDecodeError as error:  # a part of a character; C++ prints the bytes as they are
        return bytes(error.object).decode("utf-8", "surrogateescape")


def _tried(call: Callable[[], object]) -> object:
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)[:_TAIL]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
