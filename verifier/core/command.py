"""What every command shares: refusals as text, everything unforeseen as "not verified", and a console that cannot make it fail."""

from __future__ import annotations

import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, TextIO

from verifier.core.errors import VerifierError
from verifier.core.python import INTERRUPTED, NOT_VERIFIED, with_room

Main = Callable[[Sequence[str] | None], int]


def command(refused: str = "") -> Callable[[Main], Callable[..., int]]:
    """Make a `main` that takes arguments (None: those of the process) and returns its exit status into one that raises nothing.

    A `VerifierError` is printed behind `refused`, and the status is 2; so is that of anything unforeseen, out of memory or out of stack: 1
    would say that an artifact is at fault. An interrupt is 130. What cannot be printed does not change the status.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            if arguments is None:
                _prepare_console()
            try:
                return with_room(main, arguments)
            except VerifierError as error:
                print(f"{refused}: {error}" if refused else error, file=sys.stderr)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return INTERRUPTED
            except SystemExit as stop:
                if stop.code is None or stop.code == 0:  # --help
                    return 0
                if stop.code != NOT_VERIFIED:  # a library's own idea
                    print(f"{refused or 'not done'}: stopped with {stop.code!r}", file=sys.stderr)
            except BaseException:
                traceback.print_exc()
                said = "the verifier itself failed; please report this with the traceback above"
                print(f"{refused or 'not done'}: {said}", file=sys.stderr)
            return NOT_VERIFIED

        return run

    return decorate


class _Console(io.TextIOWrapper):
    """Standard output or error that raises nothing: a reader that is gone (`| head`) or a full disk ends the text, not the command."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._drop()
        except ValueError:  # closed
            return

    def _drop(self) -> None:
        """From here on everything goes nowhere, what waits in the buffer too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):
            os.dup2(nowhere, self.buffer.fileno())
        os.close(nowhere)


def _prepare_console() -> None:
    """Let both streams exist, print a substitute for characters that their encoding lacks, and never raise."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by the caller: a file that is opened next would get its number, and be printed into
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _console(sys.stdout, 1, "replace")
    sys.stderr = _console(sys.stderr, 2, "backslashreplace")


def _console(stream: TextIO | None, number: int, errors: str) -> TextIO:
    """A stream of its own on the same file: handlers of logging keep the one that there was."""
    if stream is None:
        return _Console(_raw(number), errors=errors)
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors=errors)
    raw = _raw(stream.fileno())
    return _Console(raw, encoding=stream.encoding, errors=errors, line_buffering=stream.line_buffering)


def _raw(number: int) -> BinaryIO:
    return os.fdopen(number, "wb", closefd=False)


def split_globs(text: str) -> tuple[str, ...]:
    """The globs of a comma-separated list."""
    return tuple(glob.strip() for glob in text.split(",") if glob.strip())
