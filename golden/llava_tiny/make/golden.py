"""Golden images and answers: `python -m golden.llava_tiny.make.golden [--model DIR]`.

Images are rendered or taken from scikit-image and scikit-learn once and committed; answers are the fp32 model's.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from PIL import Image

from golden.llava_tiny.make.scenes import Scene, SceneObject, render, sample_split
from verifier.families.checkpoint import EMBEDDED
from verifier.faults.subjects import answer_images


def _pairs() -> dict[str, Image.Image]:
    """Scenes that differ in a single attribute: colour, size, shape, relation, background."""
    circle = SceneObject("circle", "red", "large", 105, 110, 62)
    square = SceneObject("square", "blue", "small", 245, 170, 36)
    base = Scene((circle, square), "white")
    under = replace(square, x=120.0, y=270.0)
    return {
        "pair_base": render(base),
        "pair_colour": render(replace(base, objects=(replace(circle, colour="green"), square))),
        "pair_size_large": render(Scene((circle,), "white")),
        "pair_size_small": render(Scene((replace(circle, size="small", radius=36.0),), "white")),
        "pair_shape": render(replace(base, objects=(circle, replace(square, shape="triangle")))),
        "pair_relation": render(replace(base, objects=(circle, under))),
        "pair_background": render(replace(base, background="gray")),
    }


def _scenes() -> dict[str, Image.Image]:
    rng = random.Random("golden")
    images = {f"square_{i}": render(sample_split(rng, held_out=True, square=True)) for i in range(6)}
    for name, (low, high) in {"wide": (180, 260), "tall": (180, 260)}.items():
        found = 0
        while found < 3:
            scene = sample_split(rng, held_out=True, square=False)
            short = min(scene.width, scene.height)
            if low <= short <= high and (scene.width > scene.height) == (name == "wide"):
                images[f"{name}_{found}"] = render(scene)
                found += 1
    for name, size in {
        "odd_337x251": (337, 251),
        "odd_333x335": (333, 335),
        "large_1001x777": (1001, 777),
        "small_97x131": (97, 131),
    }.items():
        scene = sample_split(rng, held_out=True, square=True)
        images[name] = render(scene).resize(size, Image.Resampling.BICUBIC)
    images["blank"] = Image.new("RGB", (336, 336), (245, 245, 245))
    return images


def _photos() -> dict[str, Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    arrays = {
        "photo_astronaut": data.astronaut(),
        "photo_coffee": data.coffee(),
        "photo_chelsea": data.chelsea(),
        "photo_china": china,
        "photo_flower": flower,
    }
    photos = {}
    for name, array in arrays.items():
        photos[name] = Image.fromarray(array)
        photos[name].thumbnail((400, 400), Image.Resampling.LANCZOS)
    return photos


def write_images(folder: Path) -> list[Path]:
    """Render and write all golden images: scenes as PNG, photographs as JPEG."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, image in (_pairs() | _scenes() | _photos()).items():
        path = folder / (f"{name}.jpg" if name.startswith("photo_") else f"{name}.png")
        image.convert("RGB").save(path, **({"quality": 88} if path.suffix == ".jpg" else {"optimize": True}))
        paths.append(path)
    return paths


def main() -> None:
    """Answer the committed images again, or with --images render them anew first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--images", action="store_true", help="make the images too")
    arguments = parser.parse_args()
    folder = arguments.model
    if arguments.images:
        write_images(folder / "images")
    answer_images(folder)
    print(folder / "golden.json")


if __name__ == "__main__":
    main()
