"""`python -m verifier.runner.llava_main`: the flags and the output of ExecuTorch's `llava_main`, on the Python runtime.

Exit status: 0 done, 1 the program failed, 2 bad usage or an input that cannot be read.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from verifier.commands.image import prepare_file
from verifier.core.command import command
from verifier.core.errors import RunnerError
from verifier.core.system import machine
from verifier.runner.constants import BEFORE_IMAGE
from verifier.runner.conversation import Asked, ProgramError, answer
from verifier.runner.protocol import program_hash
from verifier.sessions.records import SCHEMA
from verifier.sessions.session_file import SessionFile

_BLANKS = " \t\r\n"
_ODD = "surrogateescape"
"""How Python has bytes of the command line that are no UTF-8."""


@command("llava_main")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 answered, 1 the program failed, 2 it could not be asked."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.runner.llava_main", description="Ask LLaVA about an image."
    )
    parser.add_argument("--model_path", type=Path, default=Path("llava.pte"))
    parser.add_argument(
        "--tokenizer_path", type=Path, default=Path("tokenizer.bin"), help="tokenizer.bin, .model or .json"
    )
    parser.add_argument(
        "--image_path", type=Path, required=True, help="a picture, or *.npy or *.pt from verifier.image_util"
    )
    parser.add_argument("--prompt", default="ASSISTANT:", help="the text behind the image")
    parser.add_argument("--seq_len", type=int, default=768, help="positions to use at most")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu_threads", type=int, default=0)
    parser.add_argument(
        "--record", type=Path, metavar="FILE.jsonl", help="append what was fed and answered (docs/sessions.md)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.seq_len < 1 or not 0 <= options.temperature <= 100 or not 0 <= options.cpu_threads <= 1024:
            raise RunnerError(
                "a flag is out of range", expected="seq_len >= 1, temperature 0 to 100, cpu_threads 0 to 1024"
            )
        if options.record is None:
            answer(options, prepare_file)
        else:
            _answer_and_record(options)
    except ProgramError as error:
        print(f"\nllava_main: {error}", file=sys.stderr)
        return 1
    return 0


def _answer_and_record(options: argparse.Namespace) -> None:
    """Answer, and append what was fed and what came back, an error too. Raises what `answer` raises, and `SessionError`."""
    for path, what in ((options.model_path, "program"), (options.tokenizer_path, "tokenizer")):
        if not path.is_file():
            raise RunnerError(f"no such {what}", got=path)
    session = SessionFile(options.record, _head(options))
    session.check()
    asked = Asked()
    try:
        answer(options, prepare_file, asked)
    except (ProgramError, RunnerError) as error:
        if asked.begun:
            session.append(_turn(session, options, asked, str(error)))
        raise
    session.append(_turn(session, options, asked))


def _head(options: argparse.Namespace) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "runtime": f"llava_main in Python {version('llava-verifier')}, executorch {version('executorch')}",
        "device": f"{platform.system()} {machine()}",
        "program_sha256": program_hash(options.model_path),
        "tokenizer_sha256": program_hash(options.tokenizer_path),
    }


def _turn(session: SessionFile, options: argparse.Namespace, asked: Asked, error: str = "") -> dict[str, object]:
    picture: dict[str, object] = {"pixels": session.save_pixels(asked.pixels.numpy())}
    if options.image_path.suffix not in (".npy", ".pt"):
        picture["picture"] = _plain(os.path.relpath(options.image_path, options.record.parent).encode(errors=_ODD))
    turn: dict[str, object] = {
        "reset": True,
        "inputs": [
            {"text": BEFORE_IMAGE, "ids": asked.before},
            picture,
            {"text": _plain(options.prompt.encode(errors=_ODD)), "ids": asked.after},
        ],
        "settings": {"temperature": options.temperature, "num_bos": 1, "seq_len": options.seq_len},
    }
    if error:
        return turn | {"error": error}
    text = _plain(bytes(asked.said)).strip(_BLANKS)
    return turn | {"prompt_tokens": asked.prompt_tokens, "answer": text, "answer_ids": asked.answer}


def _plain(text: bytes) -> str:
    """Text with a substitute for every byte that is none: an answer may end in the middle of a character."""
    return text.decode(errors="replace")
