"""Sessions recorded by `llava_main --record`, in Python and in C++; and the examples of docs/sessions.md.

python -m tests.bench.recorded FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import EMBEDDED_PTE
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.samples import Sample
from verifier.runner.native import find_binary
from verifier.runner.official import Input, Settings, Step, Talk, hold_talks
from verifier.sessions.inputs import Subject
from verifier.sessions.recording import record_session

TOKENIZER = EMBEDDED / "tokenizer.model"


def commands() -> dict[str, list[str]]:
    """Both `llava_main`, by the name of a session."""
    return {
        "llava_main-python": [sys.executable, "-m", "verifier.runner.llava_main"],
        "llava_main-cpp": [str(find_binary())],
    }


def ask(command: list[str], record: Path, asked: Iterable[tuple[Path, str]]) -> Path:
    """Append an answer for each picture and text behind it, by one process each."""
    for picture, prompt in asked:
        words = [f"--model_path={EMBEDDED_PTE}", f"--tokenizer_path={TOKENIZER}", f"--image_path={picture}"]
        words += [f"--prompt={prompt}", f"--record={record}"]
        subprocess.run([*command, *words], check=True, capture_output=True)
    return record


def behind(subject: Subject, sample: Sample) -> str:
    """The text behind a golden picture."""
    form, question = subject.family.prompt, sample.golden.question
    return form.after_image(question) if question else form.cue


def make_examples(folder: Path) -> None:
    """A small picture, asked by all three runners."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = Image.open(EMBEDDED / "images" / "square_0.png").convert("RGB").resize((24, 24))
    pixels, prompt = np.ascontiguousarray(np.asarray(shown).transpose(2, 0, 1)), PROMPT.after_image("What is shown?")
    picture = folder / "small.npy"
    np.save(picture, pixels)
    for name, command in commands().items():
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        ask(command, folder / f"{name}.jsonl", [(picture, prompt)])
    picture.unlink()
    inputs = (Input(text=PROMPT.before_image), Input(picture=0), Input(text=prompt))
    talk = Talk("example", (Step("reset"), Step("generate", inputs, Settings(max_new_tokens=24, num_bos=1))))
    held = hold_talks(EMBEDDED_PTE, TOKENIZER, [talk], [pixels], vocabulary=1024)
    told = [(talk, held.told[talk.name])]
    (folder / "official.jsonl").unlink(missing_ok=True)
    record_session(folder / "official.jsonl", told, [pixels], pte=EMBEDDED_PTE, tokenizer=TOKENIZER, files={})


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the examples."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recorded")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the sessions are written")
    make_examples(parser.parse_args(arguments).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
