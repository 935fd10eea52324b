"""A conversation of `python -m verifier.runner.llava_main`, on the Python runtime.

The program runs in this very process: a `.pte` that aborts the runtime takes it along. `runner/native` is the same in C++.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.core.errors import RunnerError
from verifier.runner.calling import read_calling
from verifier.runner.child import load_program
from verifier.runner.constants import BEFORE_IMAGE
from verifier.runner.tokenizer import open_tokenizer


class ProgramError(Exception):
    """A call of the program that failed."""


@dataclass
class Asked:
    """What was fed and what came back. `begun` once the program is asked; `answer` has the id that ended it, too, `said` the bytes of its pieces."""

    begun: bool = False
    pixels: Any = None
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    answer: list[int] = field(default_factory=list)
    said: bytearray = field(default_factory=bytearray)


Prepare = Callable[[Path], Any]
"""A picture file as the program takes it, uint8 [3, h, w]."""


def read_image(path: Path, prepare: Prepare) -> Any:
    """uint8 [3, h, w] from `.npy`, from `.pt` as ExecuTorch's script writes it, or from a picture, which is prepared. Raises `VerifierError`."""
    import torch

    fix = "python -m verifier.image_util --image-path PICTURE --output-path image.npy"
    if not path.is_file():
        raise RunnerError("no such image", got=path, fix=fix)
    if path.suffix not in (".pt", ".npy"):
        return prepare(path)
    try:
        if path.suffix == ".pt":
            image = next(torch.jit.load(str(path), map_location="cpu").parameters())  # type: ignore[no-untyped-call]
        else:
            image = torch.from_numpy(np.load(path, allow_pickle=False))
    except (RuntimeError, ValueError, OSError, StopIteration) as error:
        raise RunnerError("the image cannot be read", got=error, where=path, fix=fix) from error
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise RunnerError("not an image", got=f"{image.dtype} {list(image.shape)}", expected="uint8 [3, h, w]", fix=fix)
    return image.detach()


class Conversation:
    """One program, one conversation: positions go on from call to call."""

    def __init__(self, program: Any, seq_len: int) -> None:
        self.program = program
        try:
            self.limit = min(seq_len, int(self.call("get_max_seq_len")))
        except ProgramError as error:  # a file is opened lazily: what is none shows here
            raise RunnerError("not a program of this runtime, or no LLaVA", got=error) from error
        self.calling = read_calling(program)
        self.position = 0

    def call(self, method: str, *inputs: Any) -> Any:
        """The first output of a method. Raises `ProgramError`."""
        try:
            return self.program.run_method(method, inputs)[0]
        except (RuntimeError, ValueError) as error:
            raise ProgramError(str(error)) from error

    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, as the program says; none if it does not."""
        if "get_eos_ids" not in self.program.method_names():
            return ()
        return tuple(int(token) for token in self.program.run_method("get_eos_ids", ()))

    def see(self, image: Any) -> Any:
        """Image tokens [1, P, D] of a picture uint8 [3, h, w]."""
        return self.call("vision_encoder", self.calling.image(image))

    def read(self, ids: list[int]) -> Any:
        """Logits [V] of the last token of a text, which goes in in pieces if it is too long for one call. Raises `RunnerError` if it does not
        fit."""
        import torch

        if not ids:
            raise RunnerError("there is no text", fix="give a prompt")
        logits = None
        for at in range(0, len(ids), self.calling.text):
            logits = self.feed(self.call("token_embedding", torch.tensor([ids[at : at + self.calling.text]])))
        return logits

    def feed(self, embeddings: Any) -> Any:
        """Logits [V] of the last token. Raises `RunnerError` if it does not fit."""
        tokens = int(embeddings.shape[1])
        if self.position + tokens > self.limit:
            needed = self.position + tokens
            raise RunnerError("the prompt is too long", got=f"{needed} positions", expected=f"at most {self.limit}")
        logits = self.call("text_decoder", embeddings, self.calling.positions(self.position, tokens))
        self.position += tokens
        return logits.reshape(-1, logits.shape[-1])[-1]


def answer(options: argparse.Namespace, prepare: Prepare, asked: Asked | None = None) -> None:
    """Print prompt and answer as they come, and a stopwatch line to stderr; keep both in `asked`. Raises `RunnerError`, `ProgramError`."""
    asked = asked or Asked()
    asked.pixels, tokenizer = read_image(options.image_path, prepare), open_tokenizer(options.tokenizer_path)
    if not options.model_path.is_file():
        raise RunnerError("no such program", got=options.model_path)
    try:
        program = load_program(options.model_path, options.cpu_threads or None)
    except RuntimeError as error:
        raise RunnerError("not a program of this runtime", got=error, where=options.model_path) from error
    talk = Conversation(program, options.seq_len)
    ends = talk.ends() or tokenizer.eos
    asked.before = [tokenizer.bos, *tokenizer.encode(BEFORE_IMAGE)]
    asked.after = tokenizer.encode_behind(options.prompt)
    asked.begun = True
    _say(options.prompt.encode(errors="surrogateescape"))
    begun = time.perf_counter()
    logits = _prefill(talk, asked)
    prefill_s, begun = time.perf_counter() - begun, time.perf_counter()
    spoken = _speak(talk, asked, logits, options, lambda token: None if token in ends else tokenizer.piece(token))
    decode_s = time.perf_counter() - begun
    _say(b"\n")
    said = f"prefill {prefill_s:.2f} s ({asked.prompt_tokens} tokens), decode {spoken / decode_s:.1f} tokens/s ({spoken} tokens)"
    print(said, file=sys.stderr)


def _prefill(talk: Conversation, asked: Asked) -> Any:
    """Logits [V] behind the prompt."""
    seen = talk.see(asked.pixels)
    talk.read(asked.before)
    talk.feed(seen)
    logits = talk.read(asked.after)
    asked.prompt_tokens = talk.position
    return logits


def _speak(
    talk: Conversation,
    asked: Asked,
    logits: Any,
    options: argparse.Namespace,
    piece_of: Callable[[int], bytes | None],
) -> int:
    """Print the answer up to a token without a piece, which ends it, or to the last position; how many tokens were printed."""
    import torch

    random = torch.Generator().manual_seed(options.seed)
    spoken = 0
    while True:
        token = _choose(logits, options.temperature, random)
        asked.answer.append(token)
        piece = piece_of(token)
        if piece is None:
            return spoken
        asked.said += piece
        _say(piece)
        spoken += 1
        if talk.position == talk.limit:
            return spoken
        logits = talk.read([token])


def _choose(logits: Any, temperature: float, random: Any) -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.double() / temperature, 0), 1, generator=random))


def _say(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
