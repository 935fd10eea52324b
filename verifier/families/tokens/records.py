"""What is known of a tokenizer, as plain data: marks in a prompt, the rule that it follows at them, statements about special tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from verifier.core.records import JsonObject


class Mark(Enum):
    """A special token that the conversation itself puts into a text; what a user writes is never one."""

    IMAGE = "image"
    END = "end"


Part = str | Mark


@dataclass(frozen=True)
class PromptRule:
    """What a tokenizer does where a special token meets text: the pieces that it makes of a newline at the start of a text, behind the
    image, and behind the end of an answer; and whether BOS stands in front."""

    source: str
    bos: bool
    at_start: tuple[str, ...]
    behind_image: tuple[str, ...]
    behind_end: tuple[str, ...]

    def as_json(self) -> JsonObject:
        """The fields, for manifest, golden data and report."""
        return {name: list(said) if isinstance(said, tuple) else said for name, said in asdict(self).items()}

    def same_prompt(self, said: JsonObject | None) -> bool:
        """Whether a recorded rule makes the same prompts. Where none is recorded, the prompts were those of releases that always put BOS in
        front, and nothing between a special token and the text behind it."""
        if said is None:
            return self.bos and len(self.behind_image) == len(self.behind_end) == 1
        return all(said.get(name) == value for name, value in self.as_json().items() if name != "source")


def described(rule: JsonObject) -> str:
    """A rule in words."""
    pieces = " ".join(map(str, rule.get("behind_image") or ())) or "nothing"
    return f"{'BOS' if rule.get('bos') else 'no BOS'} in front, a newline after the image is {pieces}"


@dataclass(frozen=True)
class Statement:
    """What one place in a checkpoint says about a special token: `where` it stands, and the ids."""

    where: str
    ids: tuple[int, ...]
