"""Greedy answers of the fp32 reference, drafted or not: the same ids in fewer passes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from verifier.core.errors import CheckpointError
from verifier.families.answering import answer_samples, greedy_answers, image_tokens, load_sample, splice
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.definition import Definition, build_definition
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.samples import Sample
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.records import load_golden

ENDS, ROOM = (2,), 12
NAMES = ("square_0", "tall_1", "photo_coffee")


@pytest.fixture(scope="module")
def definition() -> Definition:
    """llava_tiny in fp32."""
    return build_definition(open_checkpoint())


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Three golden images: a square, a tall and a wide one."""
    checkpoint = open_checkpoint()
    tokenizer, family = Tokenizer(EMBEDDED), open_family(checkpoint)
    golden = {image.name: image for image in load_golden(EMBEDDED, checkpoint.sha256).images}
    return [load_sample(golden[name], tokenizer, family) for name in NAMES]


@pytest.fixture(scope="module")
def plain(definition: Definition, samples: list[Sample]) -> list[tuple[int, ...]]:
    """Greedy decoding without any of it: every token from a pass over the whole sequence."""
    return [_plain(definition, sample) for sample in samples]


def _plain(definition: Definition, sample: Sample) -> tuple[int, ...]:
    vision = image_tokens(definition, sample)
    ids: list[int] = []
    while len(ids) < ROOM and not (ids and ids[-1] in ENDS):
        hidden, _ = definition.hidden(splice(definition, sample, vision, (*ids, 0)))
        with torch.no_grad():
            ids.append(int(definition.decoder.output(hidden[0, -1]).argmax()))
    return tuple(ids)


def _ids(definition: Definition, samples: list[Sample], drafts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    made = greedy_answers(definition, samples, ends=ENDS, room=ROOM, drafts=drafts)
    return [tuple(answer.logits.argmax(-1).tolist()) for answer in made]


def _passes(definition: Definition, samples: list[Sample], drafts: Sequence[Sequence[int]]) -> int:
    """Passes through the first layer, of all samples together."""
    seen: list[int] = []
    handle = definition.decoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
    try:
        _ids(definition, samples, drafts)
    finally:
        handle.remove()
    return len(seen)


def _hostile(plain: list[tuple[int, ...]]) -> dict[str, list[list[int]]]:
    rng, several = random.Random(0), range(len(plain))
    return {
        "nothing": [[] for _ in several],
        "the answers": [list(ids) for ids in plain],
        "ids of no token": [[-1, 10**9] for _ in several],
        "what argmax gives of NaN": [[0] * 30 for _ in several],
        "the end at once": [[2, 2, 2] for _ in several],
        "noise": [[rng.randrange(1000) for _ in range(40)] for _ in several],
        "one wrong token": [[*ids[:2], 5, *ids[3:]] for ids in plain],
        "of another picture": [list(plain[(i + 1) % len(plain)]) for i in several],
    }


@pytest.mark.parametrize("kind", _hostile([(1,)]))
def test_draft_changes_nothing(
    definition: Definition, samples: list[Sample], plain: list[tuple[int, ...]], kind: str
) -> None:
    """Whatever is proposed, the ids are those of plain greedy decoding."""
    assert _ids(definition, samples, _hostile(plain)[kind]) == plain


def test_right_draft_takes_one_pass_and_a_wrong_token_one_more(
    definition: Definition, samples: list[Sample], plain: list[tuple[int, ...]]
) -> None:
    """What stood behind the wrong token is proposed again; without a draft every token is a pass."""
    drafts = _hostile(plain)
    assert _passes(definition, samples, drafts["the answers"]) == len(samples)
    assert _passes(definition, samples, drafts["one wrong token"]) == 2 * len(samples)
    assert _passes(definition, samples, drafts["nothing"]) == sum(map(len, plain))


def test_answers_are_those_of_the_reference(
    definition: Definition, samples: list[Sample], plain: list[tuple[int, ...]]
) -> None:
    """Image tokens, logits and hidden states are the teacher-forced ones up to rounding, so that nothing is computed twice."""
    made = greedy_answers(definition, samples, ends=ENDS, room=ROOM, drafts=[(), plain[1], ()])
    forced = [replace(s, golden=replace(s.golden, ids=ids)) for s, ids in zip(samples, plain, strict=True)]
    for one, expected in zip(made, answer_samples(definition, forced), strict=True):
        assert one.hidden is not None and expected.hidden is not None
        assert (one.vision == expected.vision).all()
        assert one.logits == pytest.approx(expected.logits, abs=1e-3)
        assert one.hidden == pytest.approx(expected.hidden, abs=1e-3)


def test_reference_without_numbers_has_no_answer(definition: Definition, samples: list[Sample]) -> None:
    """NaN in the reference is refused, and not taken for a token."""
    handle = definition.decoder.layers[0].register_forward_hook(lambda _m, _i, out: (out[0] * float("nan"), out[1]))
    try:
        with pytest.raises(CheckpointError, match="not finite"):
            _ids(definition, samples[:1], [()])
    finally:
        handle.remove()
