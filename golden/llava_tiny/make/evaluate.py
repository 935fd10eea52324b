"""Score the miniature on unseen scenes: `python -m golden.llava_tiny.make.evaluate [--pte PTE] [--scenes 256]`.

Scenes come from the held-out side of the attribute combinations, so no caption among them was ever trained on. A caption
counts as exact if every greedy token is right: forced along the true caption, the largest logit is the true token at
every position, which is the same as generating it freely. Prints one line of JSON per rung.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from golden.llava_tiny.make.scenes import render, sample_split
from verifier.core.compare import agreement_interval
from verifier.core.progress import hushed
from verifier.families.answering import answer_samples
from verifier.families.checkpoint import EMBEDDED
from verifier.families.driver import Script, converse
from verifier.families.llava.definition import build_definition
from verifier.families.llava.preprocess import prepare_image
from verifier.families.llava.prompt import DEFAULT_QUESTION, PROMPT
from verifier.families.prompts import caption_prompt
from verifier.families.registry import open_checkpoint
from verifier.families.samples import Sample
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import GoldenImage
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle


def unseen_samples(count: int, tokenizer: Tokenizer, *, seed: str = "evaluate") -> list[Sample]:
    """Held-out scenes with their true captions as forced answers."""
    rng = random.Random(seed)
    samples = []
    for number in range(count):
        scene = sample_split(rng, held_out=True)
        ids = (*tokenizer.encode(scene.caption), tokenizer.eos_id)
        wanted = GoldenImage(f"scene_{number}", Path(), "", "scene", DEFAULT_QUESTION, ids, (), scene.caption)
        samples.append(
            Sample(wanted, prepare_image(render(scene)).numpy(), caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION))
        )
    return samples


def _summary(rung: str, exact: list[bool]) -> str:
    low, high = agreement_interval(sum(exact), len(exact))
    figures = {"rung": rung, "exact": sum(exact), "scenes": len(exact), "share": round(sum(exact) / len(exact), 4)}
    return json.dumps(figures | {"interval_95": [round(low, 4), round(high, 4)]})


def exact_in_fp32(model: Path, samples: list[Sample]) -> list[bool]:
    """Whether the fp32 definition captions each scene exactly."""
    definition = build_definition(open_checkpoint(model))
    return [
        bool((answer_samples(definition, [s])[0].logits.argmax(-1) == np.array(s.golden.ids)).all()) for s in samples
    ]


def exact_in_program(pte: Path, samples: list[Sample]) -> list[bool]:
    """Whether the program captions each scene exactly on the runtime of this machine."""
    script = Script()
    made = [converse(script, image=s.image, prompt=s.prompt, answer=s.golden.ids, patches=576) for s in samples]
    result = LocalRunner().run(Bundle(pte, tuple(script.calls)), timeout_s=3600)
    if result.outcome != "ok":
        raise SystemExit(f"{pte}: {result.outcome}: {result.message}")
    return [
        all(int(result.outputs[call].argmax()) == token for call, token in zip(talk.logits, s.golden.ids, strict=True))
        for talk, s in zip(made, samples, strict=True)
    ]


def main() -> None:
    """Score fp32 and, with --pte, the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--pte", type=Path)
    parser.add_argument("--scenes", type=int, default=256)
    arguments = parser.parse_args()
    tokenizer = Tokenizer(arguments.model)
    samples = unseen_samples(arguments.scenes, tokenizer)
    with hushed():
        rows = [("fp32", exact_in_fp32(arguments.model, samples))]
        if arguments.pte:
            rows.append((arguments.pte.name, exact_in_program(arguments.pte, samples)))
    for rung, exact in rows:
        print(_summary(rung, exact))
    wrong = [s.golden.text for s, ok in zip(samples, rows[-1][1], strict=True) if not ok]
    print(*(f"not exact: {text}" for text in wrong[:10]), sep="\n")


if __name__ == "__main__":
    main()
