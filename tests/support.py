"""What several test modules use: paths, and command lines run in this process."""

from __future__ import annotations

from pathlib import Path

from verifier.checks.registry import CHECKS
from verifier.core.compare import Array, Difference, compare
from verifier.families.checkpoint import EMBEDDED
from verifier.families.conventions import EXECUTORCH_LLAVA, OPTIMUM
from verifier.families.driver import Caller
from verifier.families.llava.preprocess import LlavaPixels

EMBEDDED_PTE = EMBEDDED / "llava_tiny.pte"
FOREIGN = Path(__file__).parent / "foreign"
OPTIMUM_PTE, UPSTREAM_PTE = FOREIGN / "optimum-llava_tiny.pte", FOREIGN / "upstream-hqq-g128.pte"
"""The same checkpoint by other exporters."""
FEW_IMAGES = "blank,wide_0,photo_coffee,pair_*"
"""Of the golden images: square, wide and a photograph, and those that differ in one thing."""
WITHOUT_USE = ",".join(dict.fromkeys(f"{check.id.partition('.')[0]}.*" for check in CHECKS if check.step != "use"))
"""All checks but those of step `use`, which ask ExecuTorch's runner and the apps' picture paths on this machine, whatever the target."""
CALLER = Caller(EXECUTORCH_LLAVA, LlavaPixels(336), embedded=768, decoded=768, text=768)
"""How `EMBEDDED_PTE` is called."""
OPTIMUM_CALLER = Caller(OPTIMUM, LlavaPixels(336), embedded=767, decoded=767, text=767)
"""How optimum-executorch's program of the same checkpoint is called."""


def difference(actual: Array, expected: Array) -> Difference:
    """Two arrays that can be compared."""
    made = compare(actual=actual, expected=expected)
    assert isinstance(made, Difference), made
    return made


def sqnr_db(*, actual: Array, expected: Array) -> float:
    """The SQNR of arrays that can be compared."""
    return difference(actual, expected).sqnr_db


def row_sqnr_db(*, actual: Array, expected: Array) -> Array:
    """The same for every row."""
    return difference(actual, expected).row_sqnr_db


def export(model: Path | None, pte: Path, *arguments: str) -> int:
    """Run the exporter's command line in this process."""
    from verifier.commands.export import main

    chosen = [] if model is None else ["--model", str(model)]
    return main(["--pte-name", str(pte), "--quiet", *chosen, *arguments])


def verify(pte: Path | str, *arguments: str) -> int:
    """Run the verifier's command line in this process."""
    from verifier.commands.verify import main

    return main([str(pte), "--quiet", *arguments])
