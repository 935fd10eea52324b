"""Progress on a terminal, silence elsewhere; and silence of the frameworks, unless something goes wrong."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from verifier.core.errors import VerifierError


@contextmanager
def hushed() -> Iterator[TextIO]:
    """Keep what frameworks and native code print to themselves; yields the real stderr for our own progress.

    If the block raises anything but a refusal, what was held back is shown: it may tell why.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    real = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    out = os.dup(1)
    logging_level = logging.root.manager.disable
    with tempfile.TemporaryFile() as held, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.dup2(held.fileno(), 2)
        os.dup2(held.fileno(), 1)
        try:
            yield real
        except VerifierError:
            raise
        except BaseException:
            _restore(out, real)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace")[-4000:])
            raise
        finally:
            _restore(out, real)
            logging.disable(logging_level)
            os.close(out)
            real.close()


def _restore(out: int, real: TextIO) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(real.fileno(), 2)


OnProgress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and how many there are."""


def no_progress(_what: str, _done: int, _whole: int) -> None:
    """Ignores progress."""


@dataclass
class Progress:
    """Names the stage that is running and how long each one took. `quiet` off a terminal, unless set; with `lines` it then prints a plain line for
    each stage, and one every half minute within. `label` stands in front of every name."""

    quiet: bool = field(default_factory=lambda: not sys.stderr.isatty())
    stream: TextIO | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    lines: bool = False
    label: str = ""
    _shown: tuple[str, Status] | None = None
    _counted: tuple[str, float] = ("", 0.0)
    _last_line: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of work; a spinner while it runs, its seconds when it is over."""
        begun = self._last_line = time.perf_counter()
        if self.quiet:
            yield
            self._line(f"{name}: {time.perf_counter() - begun:.1f} s")
        else:
            console, shown = Console(file=self.stream or sys.stderr), f"{self.label}{name}"
            with console.status(escape(shown)) as status:
                self._shown = shown, status
                yield
            self._shown = None
            console.print(f"[green]✓[/] {escape(shown)} [dim]{time.perf_counter() - begun:.1f} s[/]", highlight=False)
        self.stage_s[name] = time.perf_counter() - begun

    def transferred(self, what: str, done: int, whole: int) -> None:
        """Show how far a transfer is, beside the stage that waits for it."""
        if self._shown is not None:
            name, status = self._shown
            status.update(escape(f"{name}: {what} {done / 1e6:.0f} of {whole / 1e6:.0f} MB"))

    def counted(self, what: str, done: int, whole: int) -> None:
        """Show how far a count within the stage is, and how long the rest takes if it goes on as it went so far."""
        if self._shown is None and not self.lines:
            return
        now = time.perf_counter()
        if self._counted[0] != what or done == 0:
            self._counted = what, now
        spent = now - self._counted[1]
        left = f", {clock(spent / done * (whole - done))} left" if done and spent > SETTLED_S else ""
        said = f"{done} of {whole} {what}{left}"
        if self._shown is not None:
            name, status = self._shown
            status.update(escape(f"{name}: {said}"))
        elif now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            self._line(said)

    def _line(self, text: str) -> None:
        if self.lines:
            print(f"{self.label}{text}", file=self.stream or sys.stderr, flush=True)


SETTLED_S, LINE_EVERY_S = 2.0, 30.0
"""Before that a rate says nothing; how often a count is told where nobody watches."""


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
