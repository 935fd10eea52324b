"""The calls that every runtime is given: what is said about some pictures, by fixed tokens and freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.families.answering import load_sample
from verifier.families.driver import Script, converse, converse_freely
from verifier.families.samples import Sample
from verifier.gather.opening import Opened
from verifier.gather.samples import probe_sample
from verifier.runner.protocol import Array, Bundle, Result

FORCED, FREE_TOKENS = 4, 24
"""Tokens of a fixed answer where no golden one is known; most tokens of a free answer."""


@dataclass(frozen=True)
class Asked:
    """A bundle, the names of its samples, and the calls of logits of the fixed and of the free answers, by sample."""

    bundle: Bundle
    names: tuple[str, ...]
    fixed: tuple[tuple[int, ...], ...]
    free: tuple[tuple[int, ...], ...]


def ask(opened: Opened, most: int) -> Asked:
    """At most so many pictures, spread over the golden ones. A packaged picture has no known answer: the beginning of its prompt stands in for it."""
    square = opened.recipe.static_image_shape
    images = opened.golden.images[:: max(1, len(opened.golden.images) // most)][:most]
    samples = [load_sample(image, opened.tokenizer, opened.family, square=square) for image in images]
    samples = samples or [probe_sample(opened.tokenizer, opened.family, square=square)]
    script = Script(opened.caller)
    fixed, free = [], []
    for sample in samples:
        ids = _answer(sample, packaged=opened.golden.packaged)
        told = converse(script, image=sample.image, prompt=sample.prompt, answer=ids, patches=opened.family.patches)
        fixed.append(told.logits)
        freely = converse_freely(
            script,
            image=sample.image,
            prompt=sample.prompt,
            tokens=min(max(len(ids), FORCED), FREE_TOKENS),
            patches=opened.family.patches,
            limit=opened.artifact.max_seq_len,
        )
        free.append(freely.logits)
    names = tuple(sample.golden.name for sample in samples)
    return Asked(Bundle(opened.artifact.path, tuple(script.calls)), names, tuple(fixed), tuple(free))


def _answer(sample: Sample, *, packaged: bool) -> tuple[int, ...]:
    ids = sample.golden.ids
    return ids if ids and not packaged else sample.prompt.after[:FORCED]


def favoured_tokens(result: Result, calls: Sequence[int]) -> list[int]:
    """The token that the logits of each call favour."""
    return [
        int(np.argmax(np.asarray(result.outputs[call]).reshape(-1, result.outputs[call].shape[-1])[-1]))
        for call in calls
    ]


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays have the same dtype, shape and bytes; NaN of the same bits is the same."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
