"""What several test modules use: paths, and command lines run in this process."""

from __future__ import annotations

from pathlib import Path

from verifier.checkpoint import EMBEDDED

EMBEDDED_PTE = EMBEDDED / "llava_tiny.pte"


def export(model: Path | None, pte: Path, *arguments: str) -> int:
    """Run the exporter's command line in this process."""
    from verifier.export_llava import main

    chosen = [] if model is None else ["--model", str(model)]
    return main(["--pte-name", str(pte), "--quiet", *chosen, *arguments])


def verify(pte: Path | str, *arguments: str) -> int:
    """Run the verifier's command line in this process."""
    from verifier.test_pte import main

    return main([str(pte), "--quiet", *arguments])


def wheel_file(name: str) -> Path:
    """A file of the installed ExecuTorch."""
    import executorch

    return Path(next(iter(executorch.__path__))) / name
