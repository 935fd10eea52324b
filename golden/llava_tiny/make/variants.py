"""Exports as clean as the embedded one, to calibrate with: `python -m golden.llava_tiny.make.variants FOLDER`.

They differ from it in nothing but the images that their int8 ranges come from: two halves, and two draws of three quarters. Prints one
path a line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from verifier.commands.export import main as export
from verifier.faults.subjects import calibration_draw, calibration_halves, link_images

SEEDS = (0, 1)
"""Of the draws; see `verifier.faults.clean.FIRST_SEED`."""


def main() -> int:
    """Command line; returns the exit status of the exporter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    variants = dict(zip(("first_half", "second_half"), calibration_halves(), strict=True))
    variants |= {f"draw_{seed}": calibration_draw(seed) for seed in SEEDS}
    for name, images in variants.items():
        pte = folder / f"{name}.pte"
        with tempfile.TemporaryDirectory(prefix="verifier-calibration-") as place:
            link_images(Path(place) / "images", images)
            status = export(["--pte-name", str(pte), "--calibration", str(Path(place) / "images"), "--quiet"])
        if status:
            return status
        print(pte)
    return 0


if __name__ == "__main__":
    sys.exit(main())
