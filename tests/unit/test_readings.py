"""Hypotheses of what an app's runner made of a prompt."""

from __future__ import annotations

from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.prompts import caption_prompt
from verifier.families.tokens import readings as spelled
from verifier.families.tokens.tokenizer import Tokenizer

QUESTION = "Describe the image."


def _readings() -> dict[tuple[str, ...], spelled.Reading]:
    tokenizer = Tokenizer(EMBEDDED)
    made = spelled.readings(tokenizer, PROMPT, QUESTION, caption_prompt(tokenizer, PROMPT, QUESTION))
    return {one.deviations: one for one in made}


def test_the_checkpoints_own_ids_come_first() -> None:
    """Without a deviation; no two readings are the same ids."""
    made = _readings()
    assert next(iter(made)) == ()
    assert len({(one.prompt.before, one.prompt.after) for one in made.values()}) == len(made)


def test_each_deviation_changes_the_ids_that_it_names() -> None:
    """Two of them change both."""
    made, tokenizer = _readings(), Tokenizer(EMBEDDED)
    own = made[()].prompt
    assert made[(spelled.NO_BOS,)].prompt.before == own.before[1:]
    assert made[(spelled.TWO_BOS,)].prompt.before == (tokenizer.bos_id, *own.before)
    assert made[(spelled.BLANK,)].prompt.after == tuple(tokenizer.encode(PROMPT.after_image(QUESTION)))
    assert len(made[(spelled.BLANK,)].prompt.after) == len(own.after) + 1
    both = made[(spelled.BLANK, spelled.NO_BOS)].prompt
    assert (both.before, both.after) == (own.before[1:], made[(spelled.BLANK,)].prompt.after)


def test_a_trailing_blank_is_the_last_token() -> None:
    """Behind the answer's cue."""
    own, trailing = (_readings()[key].prompt.after for key in ((), (spelled.TRAILING,)))
    assert trailing[: len(own)] == own
    assert len(trailing) == len(own) + 1
