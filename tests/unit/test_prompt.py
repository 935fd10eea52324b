"""The conversation, to the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.checkpoint import EMBEDDED
from verifier.errors import CheckpointError
from verifier.model.prompt import Tokenizer, caption_prompt, spelled


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """llava_tiny's."""
    return Tokenizer(EMBEDDED / "tokenizer.model")


@pytest.mark.parametrize("question", ["Describe the image.", "What is   shown?", "naïve café – 日本", "a\nb\n\nc"])
def test_prompt_equals_hugging_face(tokenizer: Tokenizer, question: str) -> None:
    """Ids around the image are those of Hugging Face's tokenizer for the same text."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(EMBEDDED)
    prompt = caption_prompt(tokenizer, question)
    assert [*prompt.before, 1024, *prompt.after] == reference(spelled(question))["input_ids"]


def test_prompt_has_one_bos(tokenizer: Tokenizer) -> None:
    """At the start and nowhere else."""
    prompt = caption_prompt(tokenizer)
    assert prompt.before[0] == tokenizer.bos_id == 1
    assert tokenizer.bos_id not in (*prompt.before[1:], *prompt.after)
    assert prompt.length(576) == len(prompt.before) + 576 + len(prompt.after)


def test_seed_prompt_is_the_cue_alone(tokenizer: Tokenizer) -> None:
    """`--prompt=ASSISTANT:` stands right behind the image."""
    assert tokenizer.decode(caption_prompt(tokenizer, "").after) == "ASSISTANT:"


def test_decode_stops_at_eos(tokenizer: Tokenizer) -> None:
    """What follows EOS is not text."""
    ids = tokenizer.encode("A small red ring.")
    assert tokenizer.decode([*ids, tokenizer.eos_id, *ids]) == "A small red ring."


def test_tokenizer_splits_words_into_pieces(tokenizer: Tokenizer) -> None:
    """Real subwords, and bytes for what no piece covers."""
    assert len(tokenizer.encode("unquestionably")) > 2
    assert tokenizer.decode(tokenizer.encode("日本")) == "日本"


def test_tokenizer_refuses_another_file(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"not a SentencePiece model"):
        Tokenizer(tmp_path / "tokenizer.model")
