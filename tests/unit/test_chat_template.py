"""The chat template: found as transformers finds it, rendered apart, and shown beside the prompt that is verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verifier.checks import splice
from verifier.core.errors import CheckpointError
from verifier.core.types import CheckResult
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.tokens.chat_template import ChatTemplate, find_template, render
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.tokenizer_forms import rewrite
from verifier.measures.prompts import measure_template

PUBLISHED = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}{% generation %}{{ message['content'][0]['text'] }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""As llava-1.5-7b-hf has it, its comments left out: no system prompt."""
FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """llava_tiny's files that tokenize."""
    for file in FILES:
        shutil.copy(EMBEDDED / file, tmp_path / file)
    return tmp_path


def judged(folder: Path) -> CheckResult:
    """What the check says."""
    evidence: Any = SimpleNamespace(template=measure_template(folder, Tokenizer(folder), PROMPT), subjects=None)
    (result,) = splice.template.results(evidence)
    return result


def test_template_that_spells_the_verified_prompt_passes(folder: Path) -> None:
    """llava_tiny's own."""
    result = judged(folder)
    assert result.verdict == "pass"
    assert result.measured["template"] == result.measured["verified"]
    assert result.message == "chat_template.jinja renders the prompt that is verified"


def test_template_without_system_prompt_is_shown_and_no_failure(folder: Path) -> None:
    """The published one: both prompts stand in the message."""
    (folder / "chat_template.jinja").write_text(PUBLISHED)
    result = judged(folder)
    assert result.verdict == "pass"
    assert "renders another prompt" in result.message
    assert repr("USER: <image>\nDescribe the image. ASSISTANT:") in result.message
    assert repr(Tokenizer(folder).spelled(PROMPT.caption_parts())) in result.message


def test_checkpoint_without_template_is_not_asked(folder: Path) -> None:
    """Skipped, which leaves no hole; no pass."""
    (folder / "chat_template.jinja").unlink()
    assert judged(folder).verdict == "skipped"


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ raise_exception('no images here') }}",
        "{{ messages[0].nothing.more }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 'x' * 99999999999 }}",
        "{{ ('x' * 1000000) * 3 }}",
    ],
)
def test_template_that_cannot_be_rendered_is_an_error(folder: Path, template: str) -> None:
    """A program of a stranger: refused in its own process, and never a failure of the bytes."""
    (folder / "chat_template.jinja").write_text(template)
    result = judged(folder)
    assert result.verdict == "error"
    assert "the chat template cannot be rendered" in result.message


def test_template_that_never_ends_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on time."""
    monkeypatch.setattr("verifier.families.tokens.chat_template._TIMEOUT_S", 1.0)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(CheckpointError, match="cannot be rendered"):
        render(ChatTemplate(loop, "chat_template.jinja"), Tokenizer(folder), "Why?")


def test_template_that_takes_text_alone(folder: Path) -> None:
    """Older ones join the content to a string: the image token is in it."""
    older = ChatTemplate("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}", "x")
    assert render(older, Tokenizer(folder), "Why?") == "user: <image>\nWhy?"


@pytest.mark.parametrize(
    "name", ["processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"]
)
def test_template_is_the_one_that_transformers_takes(folder: Path, name: str) -> None:
    """Wherever it stands, and also beside another one in a file that counts less."""
    from transformers import AutoProcessor

    written = "{{ 'from " + name + " ' }}{{ messages[0]['content'][1]['text'] }}"
    if name.endswith(".jinja"):
        (folder / name).write_text(written)
    elif name == "chat_template.json":
        (folder / name).write_text(json.dumps({"chat_template": written}))
    else:
        rewrite(folder / name, lambda data: data.update(chat_template=written))
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    found = find_template(folder)
    assert found is not None
    assert found.source == name
    content = [{"type": "image"}, {"type": "text", "text": "Why?"}]
    processor: Any = AutoProcessor.from_pretrained(folder)
    asked = processor.tokenizer if name == "tokenizer_config.json" else processor
    messages = [{"role": "user", "content": content}]
    theirs = asked.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert render(found, Tokenizer(folder), "Why?") == theirs == f"from {name} Why?"


def test_default_of_several_templates_counts(folder: Path) -> None:
    """A list of named ones, as tokenizer_config.json may have it."""
    (folder / "chat_template.jinja").unlink()
    several = [{"name": "tools", "template": "tools"}, {"name": "default", "template": "plain"}]
    rewrite(folder / "tokenizer_config.json", lambda data: data.update(chat_template=several))
    assert find_template(folder) == ChatTemplate("plain", "tokenizer_config.json")


def test_template_that_is_too_large_is_refused(folder: Path) -> None:
    """Before it is read."""
    (folder / "chat_template.jinja").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(CheckpointError, match="the chat template is too large"):
        find_template(folder)
