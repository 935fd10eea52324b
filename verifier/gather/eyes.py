"""The apps' eyes: every app's path on golden pictures, what the fp32 model says to them, and the sizes that the program takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from verifier.core.compare import Difference, compare
from verifier.core.errors import VerifierError
from verifier.core.system import machine
from verifier.families.conventions import ENCODER
from verifier.families.definition import Definition
from verifier.families.driver import Script
from verifier.families.pixels.apps.app import App, Frame
from verifier.families.pixels.apps.registry import APPS, frame_of
from verifier.families.pixels.processor import find_processor
from verifier.families.samples import Answered, Sample
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Opened
from verifier.gather.samples import PROBE
from verifier.measures.evidence import unasked
from verifier.measures.eyes import AppEyes, EyesEvidence, Seen, Size, SizeTried
from verifier.runner.protocol import Array, Bundle

OF_SLOW = 3
"""Sizes of the gate's own preparation that an emulated or large encoder is asked for."""
LOOKED_AT, OF_LARGE = 5, 1
"""Pictures that are not square, of which every app's path is measured where no app is named. Each is up to four more fp32 answers,
0.2 s each for llava_tiny beside its children: 4 s of the gate."""
AnswerSamples = Callable[[Definition, Sequence[Sample]], list[Answered]]
_EVEN = (2, 168, 252, 334)


@dataclass(frozen=True)
class Chosen:
    """The samples whose pictures go through each app's path."""

    samples: dict[str, list[Sample]]
    said: str


def choose(opened: Opened, samples: Sequence[Sample]) -> Chosen:
    """All pictures for an app that is named; for the others some that are not square. A large model is asked for named apps alone, once each."""
    given = [sample for sample in samples if sample.golden.kind != PROBE and sample.golden.ids]
    named, large = opened.request.apps, opened.family.large
    odd = [sample for sample in given if len(set(_stored_size(sample.golden.path))) == 2] or given
    most = min(OF_LARGE if large else LOOKED_AT, len(odd))
    some = [odd[int(i)] for i in np.linspace(0, len(odd) - 1, most)]
    if large:
        chosen = {name: some if name in named else [] for name in APPS}
    else:
        chosen = {name: given if name in named else some for name in APPS}
    said = f"{len(some)} pictures that are not square"
    said += f"; all {len(given)} for {', '.join(named)}" if named and not large else ""
    if opened.caller.convention.pixels == "normalized":
        said += "; the program takes normalized pixels, which these apps do not make: sizes are those of the picture before that"
    return Chosen(chosen, said)


def _stored_size(path: Path) -> Size:
    with Image.open(path) as file:
        return file.size


def sizes_of(app: App, samples: Sequence[Sample], side_px: int) -> tuple[Size, ...]:
    """The sizes that an app feeds: of usual shapes of pictures, and of these."""
    own = (app.size(*_stored_size(sample.golden.path), side_px) for sample in samples)
    return tuple(dict.fromkeys([*app.usual(side_px), *own]))


def prepared_sizes(opened: Opened) -> tuple[Size, ...]:
    """Sizes that the gate's own preparation feeds: even ones, or the frame alone."""
    side = opened.family.pixels.side_px
    if opened.recipe.static_image_shape:
        return ((side, side),)
    even = sorted({min(side, max(2, 2 * round(side * part / 336 / 2))) for part in _EVEN})
    both = [size for short in even for size in ((side, short), (short, side))]
    return ((side, side), *(both[: OF_SLOW - 1] if _is_slow(opened) else both))


def _is_slow(opened: Opened) -> bool:
    return opened.family.large or opened.runner.isa != machine()


def try_sizes(opened: Opened, chosen: Chosen) -> tuple[SizeTried, ...]:
    """The program's encoder, asked once for every size; those that it should take come first."""
    side, prepared = opened.family.pixels.side_px, prepared_sizes(opened)
    apps = {name: app for name, app in APPS.items() if name in opened.request.apps or not _is_slow(opened)}
    fed = [size for name, app in apps.items() for size in sizes_of(app, chosen.samples[name], side)]
    script = Script(opened.caller)
    sizes = list(dict.fromkeys([*prepared, *fed]))
    for width, height in sizes:
        picture = np.full((3, height, width), 127, np.uint8)
        script.add(ENCODER, opened.caller.image(picture), may_fail=True)
    result = run_bundle(opened.runner, Bundle(opened.artifact.path, tuple(script.calls)))
    tried = []
    for call, size in enumerate(sizes):
        output = result.outputs.get(call)
        error = "" if output is not None else result.errors.get(call) or result.message or result.outcome
        if output is not None and not np.isfinite(output).all():
            error = "image tokens that are not finite"
        tried.append(SizeTried(size, error))
    return tuple(tried)


def look(
    opened: Opened,
    chosen: Chosen,
    definition: Definition,
    known: Sequence[tuple[Sample, Answered]],
    answer: AnswerSamples,
) -> EyesEvidence:
    """Every app's picture of every chosen sample through the fp32 model, the same pixels once. `known` are answers to the samples' own pixels.
    The sizes are tried elsewhere."""
    frame = frame_of(opened.family.pixels.side_px, find_processor(opened.checkpoint.directory))
    own = {sample.golden.name: answered for sample, answered in known}
    missing = {s.golden.name: s for ss in chosen.samples.values() for s in ss if s.golden.name not in own}
    own |= dict(zip(missing, answer(definition, list(missing.values())) if missing else [], strict=True))
    pixels = {(name, s.golden.name): _fed(APPS[name], s, frame) for name, ss in chosen.samples.items() for s in ss}
    samples = {sample.golden.name: sample for ss in chosen.samples.values() for sample in ss}
    asked: dict[tuple[str, bytes], Sample] = {}
    for (_, image), fed in pixels.items():
        if not isinstance(fed, str) and not np.array_equal(fed, samples[image].image):
            asked.setdefault((image, _key(fed)), replace(samples[image], image=fed, pixels=None))
    answers = dict(zip(asked, answer(definition, list(asked.values())) if asked else [], strict=True))
    seen = partial(_seen, samples, own, answers)
    return EyesEvidence(
        {
            name: AppEyes(
                app.title,
                {s.golden.name: seen(s.golden.name, pixels[name, s.golden.name]) for s in chosen.samples[name]},
                sizes_of(app, chosen.samples[name], frame.side_px),
            )
            for name, app in APPS.items()
        },
        prepared_sizes(opened),
        unasked("the sizes that apps feed"),
        chosen.said,
    )


def _fed(app: App, sample: Sample, frame: Frame) -> Array | str:
    """uint8 [3, h, w], or why the app cannot feed the picture."""
    try:
        return app.picture(sample.golden.path, frame)
    except VerifierError as error:
        return error.one_line


def _key(picture: Array) -> bytes:
    return repr(picture.shape).encode() + picture.tobytes()


def _seen(
    samples: dict[str, Sample],
    own: dict[str, Answered],
    answers: dict[tuple[str, bytes], Answered],
    image: str,
    fed: Array | str,
) -> Seen:
    if isinstance(fed, str):
        return Seen(refusal=fed)
    size, ids = (fed.shape[2], fed.shape[1]), tuple(samples[image].golden.ids)
    if np.array_equal(fed, samples[image].image):
        return Seen(size, identical=True, same=_says(own[image], ids))
    made = answers[image, _key(fed)]
    compared = compare(actual=made.vision, expected=own[image].vision)
    db = compared.sqnr_db if isinstance(compared, Difference) else None
    return Seen(size, tokens_db=db, same=_says(made, ids))


def _says(answered: Answered, ids: tuple[int, ...]) -> bool:
    return bool(np.isfinite(answered.logits).all()) and answered.favoured == ids
