"""The images that set the int8 ranges of the embedded model: `python -m golden.llava_tiny.make.calibration`.

Sixteen scenes of the training side, rendered from one seed: every background, square and padded.
"""

from __future__ import annotations

import random
from pathlib import Path

from golden.llava_tiny.make.scenes import BACKGROUNDS, render, sample_split

FOLDER = Path(__file__).parents[1] / "calibration"
COUNT = 16


def write_calibration(folder: Path = FOLDER) -> list[Path]:
    """Render and write the images; returns their paths."""
    folder.mkdir(exist_ok=True)
    rng, paths = random.Random("calibration"), []
    for number in range(COUNT):
        wanted = tuple(BACKGROUNDS)[number % len(BACKGROUNDS)]
        while (scene := sample_split(rng, held_out=False, square=number % 4 != 3)).background != wanted:
            pass
        paths.append(folder / f"scene_{number:02d}.png")
        render(scene).save(paths[-1], optimize=True)
    return paths


if __name__ == "__main__":
    for path in write_calibration():
        print(path)
