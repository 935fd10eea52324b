"""Programs of other exporters, called by their own conventions, on the real runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE, OPTIMUM_PTE, UPSTREAM_PTE
from verifier.artifact.program import open_artifact
from verifier.families.answering import load_sample
from verifier.families.checkpoint import EMBEDDED
from verifier.families.conventions import recognize
from verifier.families.driver import Script, caller_of, converse, converse_freely, vocabulary_calls
from verifier.families.family import Family
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.samples import Sample
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.gather.conversations import logits_of
from verifier.golden.records import load_golden
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner
from verifier.runner.protocol import Bundle, Result, Runner

NAMES = ("square_0", "odd_337x251", "tall_1", "wide_1")


@pytest.fixture(scope="module")
def family() -> Family:
    """llava_tiny's."""
    return open_family(open_checkpoint())


@pytest.fixture(scope="module")
def samples(family: Family) -> list[Sample]:
    """Golden pictures of four shapes."""
    golden, tokenizer = load_golden(EMBEDDED, family.checkpoint.sha256), Tokenizer(EMBEDDED)
    return [load_sample(image, tokenizer, family) for image in golden.images if image.name in NAMES]


def _run(script: Script, pte: object, runner: Runner | None = None) -> Result:
    result = (runner or LocalRunner()).run(Bundle(pte, tuple(script.calls)), timeout_s=300)  # type: ignore[arg-type]
    assert result.outcome == "ok", result.message
    return result


@pytest.mark.parametrize("pte", [OPTIMUM_PTE, UPSTREAM_PTE], ids=["optimum", "upstream"])
def test_foreign_programs_give_the_golden_answers(pte: object, family: Family, samples: list[Sample]) -> None:
    """Forced along the golden answers of pictures of four shapes, every token of optimum's is the golden one; upstream's int8 ranges come from a
    blank picture, and at least its first tokens are."""
    script = Script(caller_of(open_artifact(pte), family))  # type: ignore[arg-type]
    told = [
        converse(script, image=s.image, prompt=s.prompt, answer=s.golden.ids, patches=family.patches) for s in samples
    ]
    result = _run(script, pte)
    for sample, talk in zip(samples, told, strict=True):
        logits = logits_of(talk, result.outputs)
        assert logits is not None and logits.shape == (len(sample.golden.ids), 1088)
        length = len(sample.golden.ids) if pte == OPTIMUM_PTE else 2
        assert logits.argmax(-1).tolist()[:length] == list(sample.golden.ids)[:length]


@pytest.mark.parametrize("pte", [OPTIMUM_PTE, UPSTREAM_PTE, EMBEDDED_PTE], ids=["optimum", "upstream", "ours"])
def test_greedy_answer_feeds_the_last_row(
    pte: object, family: Family, samples: list[Sample], native: NativeRunner
) -> None:
    """What is fed back is the token that the last row favours: the free answer is the forced one, in Python and in C++ alike."""
    caller, one = caller_of(open_artifact(pte), family), samples[0]  # type: ignore[arg-type]
    answers = []
    for runner in (LocalRunner(), native):
        script = Script(caller)
        talk = converse_freely(script, image=one.image, prompt=one.prompt, tokens=8, patches=family.patches, limit=767)
        logits = logits_of(talk, _run(script, pte, runner).outputs)
        assert logits is not None and logits.shape == (8, 1088)
        answers.append(logits.argmax(-1).tolist())
    forced = Script(caller)
    talk = converse(forced, image=one.image, prompt=one.prompt, answer=tuple(answers[0]), patches=family.patches)
    logits = logits_of(talk, _run(forced, pte).outputs)
    assert logits is not None and logits.argmax(-1).tolist() == answers[0] == answers[1]


def test_last_row_is_that_of_all_rows(family: Family, samples: list[Sample], native: NativeRunner) -> None:
    """A call that keeps all rows gives [1, S, V], one that keeps the last gives its last row [1, V], in Python and in C++."""
    script = Script(caller_of(open_artifact(OPTIMUM_PTE), family))
    last = script.read(samples[0].prompt.before, 0)
    script.calls.append(replace(script.calls[last], rows="all"))
    for runner in (LocalRunner(), native):
        outputs = _run(script, OPTIMUM_PTE, runner).outputs
        rows = len(samples[0].prompt.before)
        assert (outputs[last].shape, outputs[last + 1].shape) == ((1, 1088), (1, rows, 1088))
        np.testing.assert_array_equal(outputs[last][0], outputs[last + 1][0, -1])


def test_text_goes_in_in_pieces(family: Family, samples: list[Sample]) -> None:
    """200 tokens into a program that embeds 84 in one call: three pieces at positions 0, 84 and 168, and the logits of a program of one call."""
    ids = (samples[0].prompt.before + samples[0].prompt.after) * 10
    logits = []
    for most in (84, 50):
        caller = replace(caller_of(open_artifact(UPSTREAM_PTE), family), text=most)
        script = Script(caller)
        script.read(ids[:200], 0)
        starts = [int(np.asarray(call.inputs[1])[0]) for call in script.calls if len(call.inputs) == 2]
        assert starts == list(range(0, 200, most))
        logits.append(_run(script, UPSTREAM_PTE).outputs[len(script.calls) - 1])
    assert logits[0].argmax() == logits[1].argmax()
    np.testing.assert_allclose(logits[0], logits[1], atol=0.2)


def test_whole_vocabulary_goes_in_in_pieces(family: Family) -> None:
    """1088 tokens, 84 in a call."""
    script = Script(caller_of(open_artifact(UPSTREAM_PTE), family))
    calls = vocabulary_calls(script, vocabulary=1088)
    result = _run(script, UPSTREAM_PTE)
    assert sum(result.outputs[call].shape[1] for call in calls) == 1088
    assert len(calls) == 13


def test_both_are_recognized() -> None:
    """By their names."""
    assert recognize(open_artifact(OPTIMUM_PTE)).name.startswith("optimum")
    assert recognize(open_artifact(UPSTREAM_PTE)).name == recognize(open_artifact(EMBEDDED_PTE)).name
