"""What is told while a stage runs."""

from __future__ import annotations

import io
from typing import Any

import pytest

from verifier.core import progress as module
from verifier.core.progress import Progress, clock


class Heard:
    """Stands for rich's status line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, line: str) -> None:
        """Keep it."""
        self.lines.append(line)


def test_time_left_follows_from_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter in 30 s leaves 90; at first nothing is claimed; another count begins anew."""
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    heard: Any = Heard()
    shown = Progress(quiet=False)
    shown._shown = ("layer by layer", heard)
    shown.counted("instructions", 0, 40)
    now = 101.0
    shown.counted("instructions", 1, 40)
    now = 130.0
    shown.counted("instructions", 10, 40)
    now = 131.0
    shown.counted("layers", 1, 4)
    assert heard.lines == [
        "layer by layer: 0 of 40 instructions",
        "layer by layer: 1 of 40 instructions",
        "layer by layer: 10 of 40 instructions, 1:30 left",
        "layer by layer: 1 of 4 layers",
    ]
    assert clock(3725) == "62:05"


def test_quiet_stages_are_timed_and_silent() -> None:
    """Off a terminal nothing is written, and the seconds are known."""
    held = io.StringIO()
    silent = Progress(quiet=True, stream=held)
    with silent.stage("open"):
        silent.counted("constants", 1, 2)
    assert held.getvalue() == ""
    assert list(silent.stage_s) == ["open"]


def test_lines_are_told_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped: a line for each stage, one for a count every half minute, with the label in front; no control characters."""
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    held = io.StringIO()
    piped = Progress(quiet=True, stream=held, lines=True, label="2 of 3, b.pte: ")
    with piped.stage("layer by layer"):
        piped.counted("instructions", 0, 40)
        now = 120.0
        piped.counted("instructions", 10, 40)
        now = 140.0
        piped.counted("instructions", 20, 40)
        piped.counted("instructions", 21, 40)
    assert held.getvalue().splitlines() == [
        "2 of 3, b.pte: 20 of 40 instructions, 0:40 left",
        "2 of 3, b.pte: layer by layer: 40.0 s",
    ]
