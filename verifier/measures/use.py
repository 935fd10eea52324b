"""What ExecuTorch's own runner answered on the program under test, beside what our driver does on the same file: records."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Literal

from verifier.runner.official import Said, Told

SITUATIONS = (
    *("second turn", "reset", "A, B, A", "prefill, then generate", "text only", "two images", "stopped"),
    *("to the end of the cache", "a prompt that fills the cache", "a prompt that is too long"),
    *("an empty prompt", "an empty text", "max_new_tokens 1", "max_new_tokens 0"),
    *("seq_len behind the prompt", "seq_len of the prompt"),
)
"""How an app may ask besides one picture and one question."""
Ends = Literal["answer", "error"]


@dataclass(frozen=True)
class Fed:
    """A golden conversation. `own` are the tokens of the program's greedy answer by our driver, the one that ends it included; none if the driver
    got no numbers. `ids` and `text` are what ExecuTorch's runner did with the reference's ids, and with the text that an app has. The reference
    has `prompt_tokens`."""

    prompt_tokens: int
    own: tuple[int, ...]
    ids: Told
    text: Told


@dataclass(frozen=True)
class Candidate:
    """Ids that a prompt fed as text may have become: how they deviate from the checkpoint's, how many the prompt has then, and what our driver answers
    to them by golden image. `runners_own` if ExecuTorch's runner does that with every file."""

    deviations: tuple[str, ...]
    runners_own: bool
    prompt_tokens: int
    answers: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class FedPrompt:
    """One prompt of golden conversations, and `candidates` for what became of its text, the likeliest first; their answers are to the `looked_at`
    images."""

    question: str
    images: tuple[str, ...]
    looked_at: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    def among(self, names: Container[str]) -> FedPrompt:
        """The same of some images."""
        chosen = ([name for name in each if name in names] for each in (self.images, self.looked_at))
        images, looked_at = map(tuple, chosen)
        return replace(self, images=images, looked_at=looked_at)


@dataclass(frozen=True)
class Expected:
    """What one call of `generate` has to give: the tokens of our driver's answer, all of them if `whole`, else at least the first `least`; and whether it
    returns or ends in an error."""

    own: tuple[int, ...]
    ends: Ends = "answer"
    whole: bool = True
    least: int = 1


@dataclass(frozen=True)
class Situation:
    """One way to ask, what became of it, and what had to come of each call of `generate`, in their order."""

    told: Told
    expected: tuple[Expected, ...]

    @property
    def answers(self) -> tuple[Said, ...]:
        """What the calls of `generate` gave; those of others give no piece, and are left out unless they failed."""
        return tuple(said for said in self.told.said if said.pieces or said.error or said.prompt_tokens >= 0)


@dataclass(frozen=True)
class UseEvidence:
    """Everything that was asked of ExecuTorch's runner. `refused` says why it took neither program nor tokenizer; `asked` if the user named the target
    `official`. `printed` is what it prints for each id."""

    asked: bool
    tokenizer: str
    refused: str
    printed: tuple[str, ...]
    fed: dict[str, Fed]
    prompts: tuple[FedPrompt, ...]
    situations: dict[str, Situation]
