"""The checkpoint's chat template, and the prompt that it spells for one image and one question.

transformers renders it for whoever calls `apply_chat_template`; an app on ExecuTorch spells its prompt itself. The two need not agree: the
published template of LLaVA-1.5 has no system prompt, upstream's runner has one. Which prompt was verified has to be known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject
from verifier.families.checkpoint import read_json

if TYPE_CHECKING:
    from verifier.families.tokens.tokenizer import Tokenizer

_LIMIT_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_CHILD = Path(__file__).with_name("template_child.py")
_FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
"""In this order, as `AutoProcessor` of transformers 5 takes it; the last one is its tokenizer's."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the file that it was found in."""

    text: str
    source: str


def find_template(folder: Path) -> ChatTemplate | None:
    """The default chat template of a folder in Hugging Face layout, None if there is none. Raises `CheckpointError`."""
    for name in _FILES:
        path = folder / name
        if path.is_file():
            text = _whole(path) if path.suffix == ".jinja" else _default(_said(path))
            if text is not None:
                return ChatTemplate(text, name)
    return None


def _whole(path: Path) -> str:
    if path.stat().st_size > _LIMIT_BYTES:
        raise CheckpointError(
            "the chat template is too large",
            got=f"{path.stat().st_size} bytes",
            expected=f"<= {_LIMIT_BYTES} bytes",
            where=path,
        )
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("the chat template is no text", got=error, where=path) from error


def _said(path: Path) -> Any:
    return read_json(path, limit_bytes=4 * _LIMIT_BYTES).get("chat_template")


def _default(said: Any) -> str | None:
    """Of several templates the one named `default`."""
    if isinstance(said, list):
        said = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
    if isinstance(said, dict):
        said = said.get("default")
    return said if isinstance(said, str) else None


def render(template: ChatTemplate, tokenizer: Tokenizer, question: str) -> str:
    """The prompt that a template spells for an image and a question, the answer's cue behind it. Content goes in as a list of image and text,
    or as one text if the template takes no list. Raises `CheckpointError` if neither ends in a text."""
    contents: tuple[Any, ...] = (
        [{"type": "image"}, {"type": "text", "text": question}],
        f"{tokenizer.image_token}\n{question}",
    )
    answers = []
    for content in contents:
        variables = {
            "messages": [{"role": "user", "content": content}],
            "add_generation_prompt": True,
            "bos_token": tokenizer.piece(tokenizer.bos_id),
            "eos_token": tokenizer.piece(tokenizer.eos_id),
        }
        answers.append(_in_child({"template": template.text, "variables": variables}))
        if "text" in answers[-1]:
            return str(answers[-1]["text"])
    raise CheckpointError(
        "the chat template cannot be rendered",
        got=answers[0].get("error"),
        where=tokenizer.files.folder / template.source,
        fix="see what transformers' apply_chat_template says of it",
    )


def _in_child(given: JsonObject) -> JsonObject:
    """What the child answers, under limits on time and memory: `text`, or `error`."""
    words = [sys.executable, "-I", str(_CHILD)]
    try:
        ran = subprocess.run(
            words, input=json.dumps(given).encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
        if ran.returncode != 0:
            return {"error": f"it needs too much time or memory (status {ran.returncode})"}
        answer: JsonObject = json.loads(ran.stdout)
        return answer
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        return {"error": error}
