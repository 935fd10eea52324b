"""Exports as clean as the embedded one, to calibrate with: `python -m golden.llava_tiny.make.variants FOLDER`.

They differ from it in nothing but the images that their int8 ranges come from: two halves, and two draws of three quarters. Each half has
two of the four padded images; an export that has seen no padding loses 15 dB on padded images, and is not clean. Prints one path a line.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from verifier.checkpoint import EMBEDDED
from verifier.export_llava import main as export

SEEDS = (0, 1)
"""Of the draws. `verifier.faults.clean` draws with other seeds: what the gate must pass is not what its tolerances come from."""


def draws() -> Iterator[tuple[str, list[Path]]]:
    """Name and images of every variant."""
    offered = sorted((EMBEDDED / "calibration").glob("*.png"))
    middle = len(offered) // 2
    yield "first_half", offered[:middle]
    yield "second_half", offered[middle:]
    for seed in SEEDS:
        yield f"draw_{seed}", random.Random(seed).sample(offered, 3 * len(offered) // 4)


def make_variants(folder: Path) -> list[Path]:
    """Export what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, images in draws():
        made.append(folder / f"{name}.pte")
        if made[-1].exists():
            continue
        with tempfile.TemporaryDirectory(prefix="verifier-calibration-") as drawn:
            for path in images:
                (Path(drawn) / path.name).symlink_to(path)
            if export(["--pte-name", str(made[-1]), "--calibration", drawn, "--quiet"]):
                raise SystemExit(2)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    print(*make_variants(parser.parse_args().folder), sep="\n")
