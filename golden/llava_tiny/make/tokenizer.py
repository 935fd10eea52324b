"""A SentencePiece tokenizer with Llama's conventions, trained on captions and on the English of Python's own manual.

`python -m golden.llava_tiny.make.tokenizer DIR` writes `tokenizer.model`. BPE with byte fallback, ids 0/1/2 for
<unk>/<s>/</s>, a dummy prefix, identity normalization, digits apart: as Llama-2's. The committed file was trained before
two relations left the captions; ids belong to weights, so it stays: trained anew it would number its pieces otherwise.
"""

from __future__ import annotations

import io
import pydoc_data.topics
import random
import sys
from pathlib import Path

import sentencepiece

from golden.llava_tiny.make.scenes import sample_split

VOCABULARY = 1024
PROMPTS = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: \n ASSISTANT:",
    "Describe the image.",
    "What is shown in the picture?",
    "Write a caption for this image.",
)


def corpus() -> list[str]:
    """Sentences to train on: 400 captions, the prompts, and the topics of Python's `help()`."""
    rng = random.Random(0)
    captions = [sample_split(rng, held_out=False).caption for _ in range(400)]
    manual = [line.strip() for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
    return captions + list(PROMPTS) * 4 + manual


def train_tokenizer(directory: Path) -> Path:
    """Train and write `tokenizer.model`; returns its path."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    path = directory / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


if __name__ == "__main__":
    print(train_tokenizer(Path(sys.argv[1])))
