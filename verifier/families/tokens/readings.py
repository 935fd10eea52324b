"""Ids that an app's runner may have made of a prompt: the checkpoint's, and what usually goes wrong, as hypotheses with names.

Each is a whole prompt, so that its length can be held against what a runner says it fed, and its answer against the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import TYPE_CHECKING

from verifier.core.types import Prompt

if TYPE_CHECKING:
    from verifier.families.prompts import PromptFormat
    from verifier.families.tokens.tokenizer import Tokenizer

BLANK = "a blank behind the image, which the checkpoint's tokenizer does not put there"
NO_BLANK = "no blank behind the image, where the checkpoint's tokenizer puts one"
NO_BOS, TWO_BOS, BOS_BEHIND = "no BOS", "BOS twice", "BOS again behind the image"
TRAILING = "a trailing blank behind the prompt"
NO_NEWLINE = "no newline behind the image"
CUE_BLANK, NO_CUE_BLANK = "two blanks before the answer's cue", "no blank before the answer's cue"
RUNNERS_OWN = frozenset({BLANK, NO_BLANK})
"""What ExecuTorch's runner does to every file: it encodes the text behind an image as one of its own."""


@dataclass(frozen=True)
class Reading:
    """The ids of a prompt if the named deviations were true; none for the checkpoint's own."""

    deviations: tuple[str, ...]
    prompt: Prompt

    @property
    def name(self) -> str:
        """In words."""
        return " and ".join(self.deviations) or "the checkpoint's ids"


def readings(tokenizer: Tokenizer, form: PromptFormat, question: str, prompt: Prompt) -> tuple[Reading, ...]:
    """The checkpoint's `prompt` and all readings by one deviation or two, the likeliest first; of two with the same ids the first."""
    behind = form.after_image(question) if question else form.cue
    texts = {
        TRAILING: f"{behind} ",
        NO_NEWLINE: behind.lstrip("\n"),
        CUE_BLANK: behind.replace(f" {form.cue}", f"  {form.cue}"),
        NO_CUE_BLANK: behind.replace(f" {form.cue}", form.cue),
    }
    # how this very prompt was encoded behind its image: after it, or as a text of its own
    apart = prompt.after == tuple(tokenizer.encode(behind))
    follow: Callable[[str], list[int]] = tokenizer.encode if apart else tokenizer.encode_behind
    other = tokenizer.encode_behind if apart else tokenizer.encode

    def spelled(chosen: frozenset[str]) -> Prompt:
        text = next((texts[name] for name in texts if name in chosen), behind)
        after = tuple((other if chosen & RUNNERS_OWN else follow)(text))
        made = replace(prompt, after=after if chosen & (RUNNERS_OWN | texts.keys()) else prompt.after)
        return _with_bos(made, tokenizer.bos_id, chosen)

    known: dict[tuple[object, object], Reading] = {}
    for chosen in chain([()], _deviations(BLANK if len(other(behind)) >= len(follow(behind)) else NO_BLANK, texts)):
        reading = Reading(chosen, spelled(frozenset(chosen)))
        known.setdefault((reading.prompt.before, reading.prompt.after), reading)
    return tuple(known.values())


def _deviations(blank: str, texts: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """One, then two at a time; of the texts at most one."""
    names = (blank, TRAILING, NO_BOS, TWO_BOS, BOS_BEHIND, NO_NEWLINE, CUE_BLANK, NO_CUE_BLANK)
    bos = {NO_BOS, TWO_BOS, BOS_BEHIND}
    yield from ((name,) for name in names)
    for pair in combinations(names, 2):
        if sum(name in texts for name in pair) < 2 and not set(pair) <= bos:
            yield pair


def _with_bos(prompt: Prompt, bos: int, chosen: frozenset[str]) -> Prompt:
    before, after = prompt.before, prompt.after
    bare = before[1:] if before[:1] == (bos,) else before
    if NO_BOS in chosen:
        before = bare
    if TWO_BOS in chosen:
        before = (bos, bos, *bare)
    if BOS_BEHIND in chosen:
        after = (bos, *after)
    return replace(prompt, before=before, after=after)
