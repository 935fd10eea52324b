"""Recorded sessions of ExecuTorch's own runner and of both `llava_main` on llava_tiny: sound ones, and ones with a fault of the app. Are all faults named, and no sound one accused?

python -m tests.bench.sessions FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from golden.llava_tiny.make.scenes import render, sample_scene
from tests.bench.recorded import ask, behind, commands
from tests.support import EMBEDDED_PTE
from verifier.families.answering import load_sample
from verifier.families.checkpoint import EMBEDDED
from verifier.families.pixels.apps.registry import APPS
from verifier.families.samples import Sample
from verifier.families.tokens.readings import TRAILING, TWO_BOS
from verifier.gather.opening import Request
from verifier.golden.records import load_golden
from verifier.runner.official import Input, Settings, Step, Talk, hold_talks
from verifier.runner.protocol import Array
from verifier.sessions.hypotheses import IMAGE_BEFORE, NO_RESET, SAMPLED
from verifier.sessions.inputs import Subject
from verifier.sessions.judge import ANOTHER_TOKENIZER, Judged, judge_session
from verifier.sessions.opening import open_subject
from verifier.sessions.recording import record_session
from verifier.sessions.records import read_session

TOKENS = 24
RESET = Step("reset")


@dataclass(frozen=True)
class Played:
    """Talks for one session, their pictures, what has to be named for each turn ("" for a sound one), and whether pixels and settings are kept
    in the record."""

    talks: list[Talk]
    pictures: list[Array]
    files: dict[int, Path]
    wanted: list[str]
    tokenizer: Path | None = None


def _inputs(subject: Subject, sample: Sample, number: int, *, text: bool, trailing: str = "") -> tuple[Input, ...]:
    if text:
        before, after = subject.family.prompt.before_image, behind(subject, sample) + trailing
        return (Input(text=before), Input(picture=number), Input(text=after))
    return (Input(ids=sample.prompt.before), Input(picture=number), Input(ids=sample.prompt.after))


def drawn(subject: Subject, folder: Path, count: int) -> list[Sample]:
    """New scenes, asked as the first golden picture is."""
    rng = random.Random(22)
    head = load_golden(EMBEDDED, subject.checkpoint.sha256).images[0]
    samples = []
    for number in range(count):
        path = folder / f"scene_{number}.png"
        render(sample_scene(rng)).save(path)
        samples.append(load_sample(replace(head, path=path, name=path.stem), subject.tokenizer, subject.family))
    return samples


def another_tokenizer(folder: Path) -> Path:
    """Two pieces that prompts have, swapped."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    one, other = model.pieces[354], model.pieces[955]
    one.piece, other.piece = other.piece, one.piece
    path = folder / "another.model"
    path.write_bytes(model.SerializeToString())
    return path


def sound(subject: Subject, samples: list[Sample]) -> Played:
    """Every golden conversation by ids and by text."""
    talks, settings = [], Settings(max_new_tokens=TOKENS)
    for text in (False, True):
        for number, sample in enumerate(samples):
            given = replace(settings, num_bos=1) if text else settings
            step = Step("generate", _inputs(subject, sample, number, text=text), given)
            talks.append(Talk(f"{text} {number}", (RESET, step)))
    files = {number: sample.golden.path for number, sample in enumerate(samples)}
    return Played(talks, [sample.image for sample in samples], files, [""] * len(talks))


def _each(
    subject: Subject,
    samples: list[Sample],
    wanted: str,
    settings: Settings,
    change: Callable[[Sample], Array],
    **named: str,
) -> Played:
    talks = [
        Talk(str(n), (RESET, Step("generate", _inputs(subject, sample, n, text=True, **named), settings)))  # type: ignore[arg-type]
        for n, sample in enumerate(samples)
    ]
    files = {number: sample.golden.path for number, sample in enumerate(samples)}
    return Played(talks, [change(sample) for sample in samples], files, [wanted] * len(talks))


def faulty(subject: Subject, samples: list[Sample], folder: Path) -> dict[str, Played]:
    """Every fault in the use of the runner's own API."""
    usual = Settings(max_new_tokens=TOKENS, num_bos=1)
    own: Callable[[Sample], Array] = lambda sample: sample.image  # noqa: E731
    coloured = [sample for sample in samples if not np.array_equal(sample.image, sample.image[::-1])]
    wide = [sample for sample in samples if sample.image.shape[1] != sample.image.shape[2]]
    android = APPS["android"]
    pairs = list(pairwise(samples))
    shown = [one.image for pair in pairs for one in pair]
    talks = []
    for n, (one, other) in enumerate(pairs):
        first = Step("generate", _inputs(subject, one, 2 * n, text=True), usual)
        again = Step("generate", _inputs(subject, other, 2 * n, text=True), usual)
        talks.append(Talk(str(n), (RESET, first, RESET, again)))
    files = {2 * n: pair[1].golden.path for n, pair in enumerate(pairs)}
    before = Played(talks, shown, files, ["*", IMAGE_BEFORE] * len(pairs))
    no_reset = [
        Talk(
            str(n),
            (
                RESET,
                Step("generate", _inputs(subject, one, n, text=True), usual),
                Step("generate", _inputs(subject, one, n, text=True), usual),
            ),
        )
        for n, one in enumerate(samples)
    ]
    kept = Played(
        no_reset,
        [s.image for s in samples],
        {n: s.golden.path for n, s in enumerate(samples)},
        ["*", NO_RESET] * len(samples),
    )
    other = _each(subject, samples, ANOTHER_TOKENIZER, usual, own)
    return {
        "trailing blank": _each(subject, samples, TRAILING, usual, own, trailing=" "),
        "BOS twice": _each(subject, samples, TWO_BOS, replace(usual, num_bos=2), own),
        "no reset": kept,
        "temperature 0.8": _each(subject, samples, SAMPLED, replace(usual, temperature=0.8), own),
        "BGR": _each(subject, coloured, "BGR", usual, lambda sample: np.ascontiguousarray(sample.image[::-1])),
        "squashed": _each(subject, wide, android.title, usual, lambda s: android.picture(s.golden.path, subject.frame)),
        "image before": before,
        "another tokenizer": replace(other, tokenizer=another_tokenizer(folder)),
    }


def play(folder: Path, name: str, played: Played, subject: Subject, *, thin: bool) -> tuple[str, list[str]]:
    """Hold a session's talks, record it, judge it: the score in words, and what was not right. A `thin` record has pictures, texts, ids and answers alone, and
    claims that no blank trails."""
    tokenizer = played.tokenizer or subject.tokenizer_file
    vocabulary = subject.checkpoint.geometry.text.vocabulary
    held = hold_talks(EMBEDDED_PTE, tokenizer, played.talks, played.pictures, vocabulary=vocabulary)
    told = [(talk, held.told[talk.name]) for talk in played.talks]
    path = folder / f"{name.replace(' ', '-')}.jsonl"
    path.unlink(missing_ok=True)
    record_session(path, told, played.pictures, pte=EMBEDDED_PTE, tokenizer=tokenizer, files=played.files)
    if thin:
        lines = [_thinned(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return judged(name, path, played.wanted, subject)


def judged(name: str, path: Path, expected: Sequence[str], subject: Subject) -> tuple[str, list[str]]:
    """The score of a session in words, and what was not right."""
    verdict = judge_session(read_session(path), subject)
    pairs = [(wanted, judged) for wanted, judged in zip(expected, verdict.turns, strict=True) if wanted != "*"]

    def is_right(wanted: str, judged: Judged) -> bool:
        causes = (*judged.causes, *verdict.causes)
        return any(wanted in cause for cause in causes) if wanted else judged.outcome == "sound"

    wrong = [pair for pair in pairs if not is_right(*pair)]
    same = sum(judged.outcome == "sound" for wanted, judged in wrong if wanted)
    said = f"{name}: {len(pairs) - len(wrong)} of {len(pairs)}" + (f", {same} with the sound answer" if same else "")
    return said, [f"{name} line {j.turn.line}: {j.outcome} {j.causes} {j.said[:300]}" for _, j in wrong]


def _thinned(line: dict[str, Any]) -> dict[str, Any]:
    if "inputs" not in line:
        return {"schema": line["schema"]}
    inputs = []
    for one in line["inputs"]:
        kept = {name: value for name, value in one.items() if name != "pixels" or "picture" not in one}
        inputs.append(
            {
                name: value.rstrip(" ") if name == "text" and one is line["inputs"][-1] else value
                for name, value in kept.items()
            }
        )
    named = {name: line[name] for name in ("reset", "answer", "error") if name in line}
    return named | {"inputs": inputs, "settings": {"max_new_tokens": TOKENS}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the score."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sessions")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the sessions are written")
    parser.add_argument("--pictures", type=int, default=29, help="golden pictures (default: %(default)s)")
    parser.add_argument("--thin", action="store_true", help="record pictures, texts and answers alone")
    parser.add_argument("--new", type=int, default=21, help="new scenes (default: %(default)s)")
    parser.add_argument("--recorded", type=int, default=50, help="answers of each llava_main (default: %(default)s)")
    parser.add_argument("--sound-only", action="store_true", help="play no fault")
    options = parser.parse_args(arguments)
    folder, few = options.folder, options.pictures
    folder.mkdir(parents=True, exist_ok=True)
    subject = open_subject(Request(EMBEDDED_PTE))
    golden = load_golden(EMBEDDED, subject.checkpoint.sha256)
    samples = [load_sample(image, subject.tokenizer, subject.family) for image in golden.images][:few]
    new = drawn(subject, folder, options.new)
    all_wrong = []
    asked = [(sample.golden.path, behind(subject, sample)) for sample in (*samples, *new)][: options.recorded]
    for name, command in commands().items() if asked else ():
        path = folder / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        said, wrong = judged(f"sound, {name}", ask(command, path, asked), [""] * len(asked), subject)
        print(said, flush=True)
        all_wrong += wrong
    plays = {"sound": sound(subject, [*samples, *new])}
    if not options.sound_only:
        plays |= faulty(subject, samples, folder)
    for name, played in plays.items():
        said, wrong = play(folder, name, played, subject, thin=options.thin)
        print(said, flush=True)
        all_wrong += wrong
    print("\n".join(all_wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
