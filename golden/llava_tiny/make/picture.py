"""The README's picture: golden images and the captions of the program: `python -m golden.llava_tiny.make.picture`."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from golden.llava_tiny.make.scenes import FILLS, pad_to_frame
from verifier.core.progress import hushed
from verifier.families.answering import load_sample
from verifier.families.checkpoint import EMBEDDED
from verifier.families.driver import Script, converse
from verifier.families.llava.preprocess import frame_size
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import load_golden
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle

SHOWN = ("pair_base", "pair_relation", "square_1", "wide_2", "tall_0", "square_5", "wide_0", "square_3")
CELL_PX, TEXT_PX = 240, 64


def main() -> None:
    """Caption eight images on the runtime and write `docs/golden.png`."""
    golden = {image.name: image for image in load_golden(EMBEDDED, open_checkpoint().sha256).images}
    tokenizer = Tokenizer(EMBEDDED)
    samples = [load_sample(golden[name], tokenizer, open_family(open_checkpoint())) for name in SHOWN]
    script = Script()
    talks = [converse(script, image=s.image, prompt=s.prompt, answer=s.golden.ids, patches=576) for s in samples]
    with hushed():
        result = LocalRunner().run(Bundle(EMBEDDED / "llava_tiny.pte", tuple(script.calls)), timeout_s=600)
    sheet = Image.new("RGB", (4 * CELL_PX, 2 * (CELL_PX + TEXT_PX)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (sample, talk) in enumerate(zip(samples, talks, strict=True)):
        image = Image.open(sample.golden.path).convert("RGB")
        frame = pad_to_frame(image.resize(frame_size(*image.size)), FILLS[1]).resize((CELL_PX - 12, CELL_PX - 12))
        x, y = number % 4 * CELL_PX, number // 4 * (CELL_PX + TEXT_PX)
        sheet.paste(frame, (x + 6, y + 6))
        caption = tokenizer.decode([int(result.outputs[call].argmax()) for call in talk.logits])
        draw.multiline_text((x + 8, y + CELL_PX), "\n".join(textwrap.wrap(caption, 32)), fill=(30, 30, 30), font=font)
    path = Path(__file__).parents[3] / "docs" / "golden.png"
    sheet.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
