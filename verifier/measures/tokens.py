"""The checkpoint's tokenizer as checks and reports need it: special ids, texts of the answers that were given, and what metadata it implies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from verifier.core.types import Recipe
from verifier.families.tokens.ending import begin_statements, end_ids, end_statements
from verifier.families.tokens.records import PromptRule, Statement
from verifier.families.tokens.spelling import BLANK
from verifier.runner.protocol import Array

if TYPE_CHECKING:
    from verifier.families.checkpoint import Checkpoint
    from verifier.families.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenFacts:
    """Special ids of a tokenizer, `ends` those that end an answer, and recorded texts: `texts` of every beginning of the answers that occurred,
    `alone` and `pieces` of every single id; nothing is recorded if there was no answer."""

    bos_id: int
    eos_id: int
    image_id: int
    adds_bos: bool
    ends: tuple[int, ...]
    rule: PromptRule
    texts: dict[tuple[int, ...], str]
    alone: tuple[str, ...]
    pieces: tuple[str, ...]

    def decode(self, ids: Sequence[int]) -> str:
        """The recorded text of ids up to the first of `ends`. Of ids that were not recorded together, the pieces; `<id>` for an unknown one."""
        kept = tuple(takewhile(lambda id: id not in self.ends, ids))
        if len(kept) == 1 and 0 <= kept[0] < len(self.alone):
            return self.alone[kept[0]]
        text = self.texts.get(kept)
        return "".join(map(self.piece, kept)).replace(BLANK, " ").strip() if text is None else text

    def piece(self, id: int) -> str:
        """One token as the vocabulary spells it, with U+2581 for a blank; `<id>` for one that is not in it."""
        return self.pieces[id] if 0 <= id < len(self.pieces) else f"<{id}>"


def measure_tokens(
    tokenizer: Tokenizer, *, vocabulary: int, answers: Iterable[Sequence[int]], logits: Iterable[Array | None]
) -> TokenFacts:
    """Facts of a tokenizer, with the texts of some answers and of the tokens that logits [T, V] favour. `vocabulary` is V."""
    scored = [one.argmax(-1).tolist() for one in logits if one is not None and one.ndim == 2 and one.shape[1]]
    texts: dict[tuple[int, ...], str] = {}
    for ids in [*answers, *scored]:
        kept = tuple(takewhile(lambda id: id not in tokenizer.ends, ids))
        texts |= {kept[:length]: tokenizer.decode(kept[:length]) for length in range(len(kept) + 1)}
    known = range(vocabulary if texts else 0)
    return TokenFacts(
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.image_id,
        tokenizer.adds_bos,
        tokenizer.ends,
        tokenizer.rule,
        texts,
        tuple(tokenizer.decode([id]) for id in known),
        tuple(tokenizer.piece(id) for id in known),
    )


@dataclass(frozen=True)
class ImpliedMetadata:
    """What the metadata methods of a program have to return, by name: those that ExecuTorch's runners ask for, and `others`, which other exporters
    write and a file need not have. Besides, what the checkpoint's files state about the tokens that end an answer (`ends`) and begin a prompt
    (`begins`)."""

    expected: dict[str, int | tuple[int, ...]]
    others: dict[str, int | tuple[int, ...]]
    ends: tuple[Statement, ...]
    begins: tuple[Statement, ...]


def measure_metadata(checkpoint: Checkpoint, recipe: Recipe, tokenizer: Tokenizer) -> ImpliedMetadata:
    """What checkpoint and recipe imply. Raises `CheckpointError` for a statement that is no token id."""
    from verifier.export.lower import metadata

    directory, config, text = checkpoint.directory, checkpoint.config, checkpoint.geometry.text
    expected = metadata(
        recipe,
        vocabulary=checkpoint.geometry.text.vocabulary,
        bos_id=tokenizer.bos_id,
        eos_ids=end_ids(directory, config, tokenizer_id=tokenizer.eos_id),
    )
    others: dict[str, int | tuple[int, ...]] = {
        "get_eos_id": expected["get_eos_ids"],
        "get_n_layers": text.layers,
        "get_n_kv_heads": text.kv_heads,
        "get_head_dim": text.head_dim,
        "vision_token_id": tokenizer.image_id,
    }  # optimum-executorch 1.1.0, optimum/exporters/executorch/integrations.py
    return ImpliedMetadata(expected, others, end_statements(directory, config), begin_statements(directory, config))
