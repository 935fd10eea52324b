"""ExecuTorch's own runner in a process of its own: what it answers, and what becomes of a talk that ends the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from verifier.families.checkpoint import EMBEDDED
from verifier.runner.official import Input, Settings, Step, Talk, Talks, hold_talks
from verifier.runner.targets import make_runner

pytestmark = pytest.mark.xdist_group("official")
BOS, VOCABULARY = 1, 1088
FEW = Settings(max_new_tokens=3)


def _talk(name: str, *ids: int, **settings: int) -> Talk:
    return Talk(name, (Step("reset"), Step("generate", (Input(ids=ids),), Settings(**settings) if settings else FEW)))


def _hold(*talks: Talk, tokenizer: Path = EMBEDDED / "tokenizer.model") -> Talks:
    return hold_talks(EMBEDDED_PTE, tokenizer, talks, [], vocabulary=VOCABULARY)


def test_an_abort_ends_one_talk_alone() -> None:
    """An id beyond the table ends the process; the talks before and behind it are answered, and alike."""
    held = _hold(_talk("before", BOS, 354), _talk("beyond", BOS, 99_999), _talk("behind", BOS, 354))
    assert [told.outcome for told in held.told.values()] == ["ok", "aborted", "ok"]
    assert "SIGABRT" in held.told["beyond"].message
    assert "index 99999 must be in range" in held.told["beyond"].message
    before, behind = (held.told[name].said[-1] for name in ("before", "behind"))
    assert len(before.pieces) == 3
    assert before.prompt_tokens == 2
    assert before.pieces == behind.pieces


def test_an_error_is_an_outcome_with_its_reason() -> None:
    """The call says only that generation failed; ExecuTorch's log says why."""
    held = _hold(_talk("no room", BOS, 354, max_new_tokens=0), Talk("nothing", (Step("generate"),)))
    assert [told.outcome for told in held.told.values()] == ["failed", "failed"]
    assert "Max new tokens 0 is less than or equal to 0" in held.told["no room"].message
    assert "MultimodalInput vector cannot be empty" in held.told["nothing"].message


def test_a_tokenizer_that_is_refused_is_said() -> None:
    """llava_tiny's tokenizer.json has a form that ExecuTorch's C++ does not read."""
    held = _hold(_talk("any", BOS), tokenizer=EMBEDDED / "tokenizer.json")
    assert held.told == {}
    assert held.refused
    assert held.tokenizer == "tokenizer.json"


def test_the_target_calls_methods_by_the_local_runtime() -> None:
    """One command gives the ladder and the use."""
    assert make_runner("official").name == "official"
    assert make_runner("official").isa == make_runner("local").isa
