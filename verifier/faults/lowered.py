"""Lowered methods of sound exports, kept so that a faulty export lowers no method that the fault leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_KEPT: dict[Path, dict[str, ExportedProgram]] = {}


def keep(model: Path, export: Callable[[], None]) -> None:
    """Keep what the exporter lowers while `export` runs it in this process."""
    run = _exporter()
    right = run.lowered

    def lowered(method: str, *given: Any) -> ExportedProgram:
        made: ExportedProgram = right(method, *given)
        _KEPT.setdefault(model, {})[method] = copy.deepcopy(made)
        return made

    run.lowered = lowered
    try:
        export()
    finally:
        run.lowered = right


def reuse(model: Path, changed: str) -> None:
    """In this process, and for good: of a model that was kept, the exporter lowers the method `changed` alone."""
    run = _exporter()
    kept, right = _KEPT.get(model, {}), run.lowered

    def lowered(method: str, *given: Any) -> ExportedProgram:
        return right(method, *given) if method == changed or method not in kept else kept[method]

    run.lowered = lowered


def _exporter() -> Any:
    from verifier.export import run

    return run
