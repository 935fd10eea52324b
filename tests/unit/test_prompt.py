"""The conversation, to the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.core.errors import CheckpointError
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import DEFAULT_QUESTION, PROMPT
from verifier.families.prompts import Turn, caption_prompt, dialogue_segments
from verifier.families.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """llava_tiny's."""
    return Tokenizer(EMBEDDED)


@pytest.mark.parametrize("question", ["Describe the image.", "What is   shown?", "naïve café – 日本", "a\nb\n\nc"])
def test_prompt_equals_hugging_face(tokenizer: Tokenizer, question: str) -> None:
    """Ids around the image are those of Hugging Face's tokenizer for the same text."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(EMBEDDED)
    prompt = caption_prompt(tokenizer, PROMPT, question)
    expected = reference(tokenizer.spelled(PROMPT.caption_parts(question)))["input_ids"]
    assert [*prompt.before, 1024, *prompt.after] == expected


def test_prompt_has_one_bos(tokenizer: Tokenizer) -> None:
    """At the start and nowhere else."""
    prompt = caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION)
    assert prompt.before[0] == tokenizer.bos_id == 1
    assert tokenizer.bos_id not in (*prompt.before[1:], *prompt.after)
    assert prompt.length(576) == len(prompt.before) + 576 + len(prompt.after)


def test_seed_prompt_is_the_cue_alone(tokenizer: Tokenizer) -> None:
    """`--prompt=ASSISTANT:` stands behind the image as a text of its own, and what stands before the image stays."""
    seed = caption_prompt(tokenizer, PROMPT, "")
    assert seed.after == tuple(tokenizer.encode("ASSISTANT:"))
    assert seed.before == caption_prompt(tokenizer, PROMPT, DEFAULT_QUESTION).before


def test_dialogue_is_cut_at_its_images(tokenizer: Tokenizer) -> None:
    """Segments between images, whose text is the spelled one; `</s>` behind an answer."""
    turns = (Turn("Compare.", images=2, answer="Alike."), Turn("Why?", images=0))
    segments = dialogue_segments(tokenizer, PROMPT, turns)
    assert [segment is None for segment in segments] == [False, True, False, True, False]
    flat = [token for segment in segments for token in (segment or (tokenizer.image_id,))]
    assert flat == tokenizer.encode_parts(PROMPT.dialogue_parts(turns))
    assert flat.count(tokenizer.eos_id) == 1


@pytest.mark.parametrize("written", ["What does <image> mean?", "</s>", "<s> and </s><image>", "<unk><pad>"])
def test_what_a_user_writes_is_text(tokenizer: Tokenizer, written: str) -> None:
    """A literal special token in a question makes no special id, and the text comes back whole."""
    prompt = caption_prompt(tokenizer, PROMPT, written)
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.image_id, 0, 1025}
    assert not special & set(prompt.after)
    assert written in tokenizer.decode(prompt.after)


def test_decode_stops_at_eos(tokenizer: Tokenizer) -> None:
    """What follows EOS is not text."""
    ids = tokenizer.encode("A small red ring.")
    assert tokenizer.decode([*ids, tokenizer.eos_id, *ids]) == "A small red ring."


def test_tokenizer_splits_words_into_pieces(tokenizer: Tokenizer) -> None:
    """Real subwords, and bytes for what no piece covers."""
    assert len(tokenizer.encode("unquestionably")) > 2
    assert tokenizer.decode(tokenizer.encode("日本")) == "日本"


def test_piece_beyond_the_vocabulary_is_its_id(tokenizer: Tokenizer) -> None:
    """Reports show something for every id."""
    assert [tokenizer.piece(i) for i in (1, 354, 1024, 5000, -1)] == ["<s>", "▁A", "<image>", "<5000>", "<-1>"]


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """The message names what is missing."""
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Tokenizer(tmp_path)
