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
    """Names the stage that is running and how long each one took. `quiet` off a terminal, unless set."""

    quiet: bool = field(default_factory=lambda: not sys.stderr.isatty())
    stream: TextIO | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    _shown: tuple[str, Status] | None = None
    _counted: tuple[str, float] = ("", 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of work; a spinner while it runs, its seconds when it is over."""
        begun = time.perf_counter()
        if self.quiet:
            yield
        else:
            console = Console(file=self.stream or sys.stderr)
            with console.status(escape(name)) as status:
                self._shown = name, status
                yield
            self._shown = None
            console.print(f"[green]✓[/] {escape(name)} [dim]{time.perf_counter() - begun:.1f} s[/]", highlight=False)
        self.stage_s[name] = time.perf_counter() - begun

    def transferred(self, what: str, done: int, whole: int) -> None:
        """Show how far a transfer is, beside the stage that waits for it."""
        if self._shown is not None:
            name, status = self._shown
            status.update(escape(f"{name}: {what} {done / 1e6:.0f} of {whole / 1e6:.0f} MB"))

    def counted(self, what: str, done: int, whole: int) -> None:
        """Show how far a count within the stage is, and how long the rest takes if it goes on as it went so far."""
        if self._shown is None:
            return
        now = time.perf_counter()
        if self._counted[0] != what or done == 0:
            self._counted = what, now
        name, status = self._shown
        spent = now - self._counted[1]
        left = f", {clock(spent / done * (whole - done))} left" if done and spent > SETTLED_S else ""
        status.update(escape(f"{name}: {done} of {whole} {what}{left}"))


SETTLED_S = 2.0
"""Before that a rate says nothing."""


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
