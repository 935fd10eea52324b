"""`python -m tests.bench.eyes [--scenes 256]`: the apps' picture paths on unseen scenes; writes docs/app-pixels.json, the table of
docs/app-pixels.md and its picture.

Scenes are drawn by golden/llava_tiny/make/scenes.py from the held-out combinations, once as they are drawn (longer side 336 px) and once
enlarged three times, as a camera's picture is larger than the frame. Those that the fp32 model captions exactly are asked again with each app's
pixels. The sizes that an app feeds are tried on the program.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from golden.llava_tiny.make.scenes import render, sample_split
from verifier.core.compare import Difference, agreement_interval, compare
from verifier.core.progress import hushed
from verifier.core.records import JsonObject
from verifier.families.answering import answer_samples
from verifier.families.checkpoint import EMBEDDED
from verifier.families.conventions import ENCODER
from verifier.families.definition import Definition
from verifier.families.pixels.apps.app import Frame, Size
from verifier.families.pixels.apps.registry import APPS, frame_of
from verifier.families.pixels.image_file import read_image
from verifier.families.pixels.processor import find_processor
from verifier.families.prompts import caption_prompt
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.samples import Answered, Sample
from verifier.families.tokens.agreement import open_tokenizer
from verifier.golden.records import GoldenImage
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- scenes: written by tests.bench.eyes -->\n", "<!-- end of scenes -->"
SETS = {"as drawn, longer side 336 px": 1, "three times as large, as a camera's": 3}
AT_ONCE = 8
SHOWN = ("photo_coffee.jpg", "tall_0.png")


def _scenes(count: int, enlarged: int) -> Iterator[tuple[str, Image.Image]]:
    rng = random.Random("eyes")
    for _ in range(count):
        scene = sample_split(rng, held_out=True)
        picture = render(scene)
        size = (picture.width * enlarged, picture.height * enlarged)
        yield scene.caption, picture if enlarged == 1 else picture.resize(size, Image.Resampling.BICUBIC)


def _exact(answered: Answered, sample: Sample) -> bool:
    return [int(token) for token in answered.logits.argmax(-1)] == list(sample.golden.ids)


class _Rows:
    """Figures of every app while scenes come in."""

    def __init__(self, definition: Definition, frame: Frame) -> None:
        self.definition, self.frame = definition, frame
        self.scenes = self.asked = 0
        self.db: dict[str, list[float]] = {name: [] for name in APPS}
        self.lost: dict[str, list[Size]] = {name: [] for name in APPS}
        self.sizes: dict[str, list[Size]] = {name: [] for name in APPS}
        self.identical = dict.fromkeys(APPS, 0)

    def add(self, samples: Sequence[tuple[Sample, Image.Image]]) -> None:
        """Some scenes: the reference, then every app's pixels, the same ones once."""
        own = answer_samples(self.definition, [sample for sample, _ in samples])
        self.scenes += len(samples)
        exact = [(s, picture, a) for (s, picture), a in zip(samples, own, strict=True) if _exact(a, s)]
        self.asked += len(exact)
        fed = [(s, a, {n: app.picture(np.asarray(p), self.frame) for n, app in APPS.items()}) for s, p, a in exact]
        keys = [(at, made.shape, made.tobytes()) for at, (_, _, ways) in enumerate(fed) for made in ways.values()]
        known = {(at, s.image.shape, s.image.tobytes()): a for at, (s, a, _) in enumerate(fed)}
        new = [key for key in dict.fromkeys(keys) if key not in known]
        images = [np.frombuffer(raw, np.uint8).reshape(shape).copy() for _, shape, raw in new]
        asked = [replace(fed[at][0], image=image) for (at, _, _), image in zip(new, images, strict=True)]
        known |= dict(zip(new, answer_samples(self.definition, asked) if asked else [], strict=True))
        for at, (sample, reference, ways) in enumerate(fed):
            for name, made in ways.items():
                self._note(name, made, sample, reference, known[at, made.shape, made.tobytes()])

    def _note(self, name: str, made: Any, sample: Sample, reference: Answered, answered: Answered) -> None:
        size = (made.shape[2], made.shape[1])
        self.sizes[name].append(size)
        if answered is reference:
            self.identical[name] += 1
        else:
            compared = compare(actual=answered.vision, expected=reference.vision)
            assert isinstance(compared, Difference), compared.reason
            self.db[name].append(compared.sqnr_db)
        if not _exact(answered, sample):
            self.lost[name].append(size)

    def figures(self, refused: set[Size]) -> JsonObject:
        """Rows by app; what the program refuses is lost, whatever the model would say."""
        rows: JsonObject = {}
        for name in APPS:
            aborts = sum(size in refused for size in self.sizes[name])
            lost = aborts + sum(size not in refused for size in self.lost[name])
            low, high = agreement_interval(lost, self.asked)
            db = sorted(self.db[name])
            rows[name] = {
                "lost": lost,
                "aborts": aborts,
                "interval": [round(low, 4), round(high, 4)],
                "identical": self.identical[name],
                "median_db": round(statistics.median(db), 1) if db else None,
                "least_db": round(db[0], 1) if db else None,
            }
        return {"scenes": self.scenes, "asked": self.asked, "apps": rows}


def refused_sizes(pte: Path, sizes: set[Size]) -> set[Size]:
    """Those that the program's encoder answers with an error."""
    ordered = sorted(sizes)
    calls = tuple(Call(ENCODER, (np.full((3, h, w), 127, np.uint8),), may_fail=True) for w, h in ordered)
    result = LocalRunner().run(Bundle(pte, calls), timeout_s=3600)
    return {size for call, size in enumerate(ordered) if call not in result.outputs}


def measure(pte: Path, count: int) -> JsonObject:
    """All figures."""
    checkpoint = open_checkpoint(EMBEDDED)
    family, tokenizer = open_family(checkpoint), open_tokenizer(checkpoint)
    frame = frame_of(family.pixels.side_px, find_processor(EMBEDDED))
    definition, question = family.definition(max_len=768), family.prompt.default_question
    prompt = caption_prompt(tokenizer, family.prompt, question)
    made = {}
    for said, enlarged in SETS.items():
        rows, waiting = _Rows(definition, frame), []
        for number, (caption, picture) in enumerate(_scenes(count, enlarged), start=1):
            ids = (*tokenizer.encode(caption), tokenizer.eos_id)
            wanted = GoldenImage(f"scene_{number}", Path(), "", "scene", question, ids, (), caption)
            waiting.append((Sample(wanted, family.pixels.prepare(picture).numpy(), prompt), picture))
            if len(waiting) == AT_ONCE or number == count:
                rows.add(waiting)
                waiting = []
        sizes = {size for found in rows.sizes.values() for size in found}
        made[said] = rows.figures(refused_sizes(pte, sizes))
    return {"program": pte.name, "sets": made}


def table(data: JsonObject) -> str:
    """The figures in Markdown."""
    lines = []
    for said, figures in data["sets"].items():
        lines += [
            f"{figures['scenes']} scenes {said}; fp32 captions {figures['asked']} of them exactly, and those are asked:",
            "",
        ]
        lines += [
            "| app | answers lost | 95 % interval | of them refused by the program | image tokens, median (least) | the same pixels |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for name, row in figures["apps"].items():
            low, high = row["interval"]
            db = "" if row["median_db"] is None else f"{row['median_db']} dB ({row['least_db']})"
            cells = (f"`{name}`", f"{row['lost']} ({row['lost'] / figures['asked']:.1%})", f"{low:.1%} to {high:.1%}")
            lines.append(f"| {' | '.join(cells)} | {row['aborts']} | {db} | {row['identical']} |")
        lines.append("")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """What each app's eyes see of two pictures, side by side; black is what the program pads with, red a size that llava_tiny.pte refuses."""
    side, pad, head = 168, 8, 22
    checkpoint = open_checkpoint(EMBEDDED)
    frame = frame_of(336, find_processor(EMBEDDED))
    names = ["file", "gate", *APPS]
    sheet = Image.new("RGB", (len(names) * (side + pad) + pad, head + len(SHOWN) * (side + pad)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for row, file in enumerate(SHOWN):
        source = EMBEDDED / "images" / file
        picture = read_image(source)
        gate = open_family(checkpoint).pixels.prepare(picture, square=True).numpy()
        shown: dict[str, Any] = {"file": np.asarray(picture).transpose(2, 0, 1), "gate": gate}
        shown |= {name: app.picture(source, frame) for name, app in APPS.items()}
        for column, name in enumerate(names):
            left, top = pad + column * (side + pad), head + row * (side + pad)
            pen.text((left, 5), name, fill=(0, 0, 0))
            image = Image.fromarray(shown[name].transpose(1, 2, 0))
            refused = name != "file" and bool(image.width % 2 or image.height % 2)
            image.thumbnail((side, side), Image.Resampling.BOX)
            ground = (225, 225, 235) if name == "file" else (0, 0, 0)
            pen.rectangle((left, top, left + side - 1, top + side - 1), fill=ground)
            sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
            if refused:
                pen.rectangle((left, top, left + side - 1, top + side - 1), outline=(220, 0, 0), width=4)
    sheet.quantize(256).save(path, optimize=True)


def main() -> None:
    """Measure, and write the page's parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--pte", type=Path, default=EMBEDDED / "llava_tiny.pte")
    parser.add_argument("--draw-only", action="store_true", help="the picture alone")
    options = parser.parse_args()
    draw(DOCS / "pictures" / "app-pixels.png")
    if options.draw_only:
        return
    with hushed():
        data = measure(options.pte, options.scenes)
    (DOCS / "app-pixels.json").write_text(json.dumps(data, indent=1) + "\n")
    page = DOCS / "app-pixels.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n" + table(data) + END + rest.split(END)[1])
    print(table(data))


if __name__ == "__main__":
    main()
