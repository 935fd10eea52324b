"""Recorded texts, prompts and metadata: what checks read instead of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support import CALLER
from verifier.core.archive import load_archive, save_archive
from verifier.core.types import Missing, Recipe
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.registry import open_checkpoint
from verifier.families.tokens.agreement import open_tokenizer
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.measures.prompts import PROMPTS, PromptEvidence, TemplatePrompt, measure_prompts, measure_template
from verifier.measures.shipped import _bytes_without_text
from verifier.measures.tokens import ImpliedMetadata, TokenFacts, measure_metadata, measure_tokens

VOCABULARY = 1024


@dataclass(frozen=True)
class Measured:
    """Everything that is measured with a tokenizer."""

    tokens: TokenFacts
    prompts: PromptEvidence
    template: TemplatePrompt | Missing
    implied: ImpliedMetadata


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """llava_tiny's."""
    return open_tokenizer(open_checkpoint(EMBEDDED))


def _answer(tokenizer: Tokenizer) -> list[int]:
    return [*tokenizer.encode("A small ring, 日本 🙂."), tokenizer.eos_id]


def test_recorded_texts_are_the_tokenizers(tokenizer: Tokenizer) -> None:
    """Of an answer, of each of its beginnings, of favoured tokens, and of every single id."""
    ids = _answer(tokenizer)
    favoured = [7, 300, 13]
    logits = np.eye(VOCABULARY, dtype=np.float32)[favoured]
    tokens = measure_tokens(tokenizer, vocabulary=VOCABULARY, answers=[ids], logits=[logits, None])
    for given in [*(ids[:length] for length in range(len(ids) + 1)), favoured, favoured[:2], [*ids, 5]]:
        assert tokens.decode(given) == tokenizer.decode(given)
    for id in range(VOCABULARY):
        assert (tokens.decode([id]), tokens.piece(id)) == (tokenizer.decode([id]), tokenizer.piece(id))


def test_ids_that_were_not_recorded_are_shown_as_such(tokenizer: Tokenizer) -> None:
    """By their pieces, or by number."""
    tokens = measure_tokens(tokenizer, vocabulary=VOCABULARY, answers=[[7]], logits=())
    assert tokens.decode([*tokenizer.encode("A ring"), 5000]) == "A ring<5000>"
    nothing = measure_tokens(tokenizer, vocabulary=VOCABULARY, answers=(), logits=())
    assert (nothing.decode([7, 8]), nothing.piece(-1)) == ("<7><8>", "<-1>")


@pytest.mark.parametrize("odd", [np.zeros((2, 0)), np.zeros(3), np.full((2, VOCABULARY), np.nan)])
def test_logits_that_are_no_logits_are_no_answer(odd: np.ndarray, tokenizer: Tokenizer) -> None:
    """A wrong shape is left out; the favoured token of NaN is the first one, as the checks' own argmax has it."""
    tokens = measure_tokens(tokenizer, vocabulary=VOCABULARY, answers=(), logits=[odd])
    assert set(tokens.texts) <= {(), (0,), (0, 0)}


def test_what_is_measured_can_be_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Plain data, by its annotations."""
    checkpoint = open_checkpoint(EMBEDDED)
    measured = Measured(
        measure_tokens(tokenizer, vocabulary=VOCABULARY, answers=[_answer(tokenizer)], logits=()),
        measure_prompts(tokenizer, PROMPT, ["", "What?"], CALLER, patches=16, limit=768),
        measure_template(EMBEDDED, tokenizer, PROMPT),
        measure_metadata(checkpoint, Recipe(), tokenizer),
    )
    save_archive(measured, tmp_path / "measured", schema="test/1")
    assert load_archive(tmp_path / "measured", Measured, schema="test/1") == measured
    assert measured.prompts.dialogues.keys() == PROMPTS.keys()


@pytest.mark.parametrize(
    ("ids", "run"),
    [
        ((5, 6), b""),
        ((0, 1, 5), b""),
        ((0, 5, 1), b"\xc3"),
        ((5, 2, 3), b"\xaf\x4c"),
        ((5, 99), b""),
    ],
)
def test_bytes_that_are_no_text_are_found_in_an_answer(ids: tuple[int, ...], run: bytes) -> None:
    """Byte pieces that follow each other must be UTF-8 together."""
    names = {0: "<0xC3>", 1: "<0xA4>", 2: "<0xAF>", 3: "<0x4C>", 5: "a", 6: "<0x>"}
    given: Any = SimpleNamespace(asked=SimpleNamespace(pieces=SimpleNamespace(names=names)))
    assert _bytes_without_text(given, ids) == run
