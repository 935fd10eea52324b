"""Which tokens end an answer: by tokenizer, config and generation_config, in the export and in its check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.gate.cases import copy_of_llava_tiny
from verifier.artifact.header import read_header
from verifier.artifact.program import _facts, read_program
from verifier.core.errors import CheckpointError
from verifier.core.types import Recipe
from verifier.export.lower import metadata, to_edge, to_program
from verifier.families.registry import open_checkpoint
from verifier.families.tokens.agreement import open_tokenizer
from verifier.families.tokens.ending import begin_statements, end_ids
from verifier.faults.tokenizer_forms import rewrite


@pytest.fixture
def model(micro_checkpoint: Path, tmp_path: Path) -> Path:
    """A micro checkpoint whose files may say something else."""
    return Path(shutil.copytree(micro_checkpoint, tmp_path / "model"))


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


def _ends(model: Path) -> tuple[int, ...]:
    checkpoint = open_checkpoint(model)
    return end_ids(checkpoint.directory, checkpoint.config, tokenizer_id=2)


def test_the_tokenizer_alone_names_one(model: Path) -> None:
    """llava_tiny's files agree on </s>."""
    assert _ends(model) == (2,)


@pytest.mark.parametrize(
    ("file", "fields", "expected"),
    [
        ("generation_config.json", {"eos_token_id": [2, 957]}, (2, 957)),
        ("generation_config.json", {"eos_token_id": 957}, (2, 957)),
        ("generation_config.json", {"eos_token_id": None}, (2,)),
        ("config.json", {"eos_token_id": [957, 3]}, (2, 3, 957)),
        ("config.json", {"eos_token_id": -1}, (2,)),
        ("tokenizer_config.json", {"eos_token": {"content": "<image>"}}, (2, 1024)),
        (
            "tokenizer_config.json",
            {"eos_token": "<|end|>", "added_tokens_decoder": {"7": {"content": "<|end|>"}}},
            (2, 7),
        ),
    ],
)
def test_every_file_is_heard(model: Path, file: str, fields: dict[str, object], expected: tuple[int, ...]) -> None:
    """The union: transformers stops at any of generation_config's, chats end with the tokenizer's."""
    _edit(model / file, **fields)
    assert _ends(model) == expected


def test_the_text_config_is_heard(model: Path) -> None:
    """Where transformers 4 wrote it."""
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 11
    _edit(model / "config.json", **config)
    assert _ends(model) == (2, 11)


@pytest.mark.parametrize("value", ["2", [2, "957"], True, {"id": 2}])
def test_what_is_no_id_is_refused(model: Path, value: object) -> None:
    """By the file and field."""
    _edit(model / "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match=r"(?s)eos_token_id is not a token id.*generation_config\.json"):
        _ends(model)


def test_a_disagreement_about_bos_is_known(model: Path) -> None:
    """A config that names another beginning than the tokenizer."""
    _edit(model / "config.json", bos_token_id=5)
    checkpoint = open_checkpoint(model)
    said = begin_statements(checkpoint.directory, checkpoint.config)
    assert (said[0].where, said[0].ids) == ("config.json", (5,))


def test_several_ends_are_written_as_runners_read_them(tmp_path: Path) -> None:
    """One output for each id; one id stays one value, as it always was."""
    from executorch.runtime import Runtime

    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    facts = metadata(Recipe(), vocabulary=1088, bos_id=1, eos_ids=(2, 957))
    path = tmp_path / "relu.pte"
    path.write_bytes(to_program(to_edge({"forward": program}, facts)).buffer)
    _, plans = read_program(path, read_header(path))
    assert _facts(plans["get_eos_ids"]).constant == (2, 957)
    assert list(Runtime.get().load_program(path).load_method("get_eos_ids").execute([])) == [2, 957]
    assert metadata(Recipe(), vocabulary=1088, bos_id=1, eos_ids=(2,))["get_eos_ids"] == 2


def test_text_of_an_answer_stops_at_every_end(tmp_path: Path) -> None:
    """A second id that ends an answer is cut off like the tokenizer's own."""
    folder = copy_of_llava_tiny(tmp_path / "two-ends")
    rewrite(folder / "generation_config.json", lambda data: data.update(eos_token_id=[2, 957]))
    tokenizer = open_tokenizer(open_checkpoint(str(folder)))
    ids = tokenizer.encode("a red circle")
    assert tokenizer.ends == (2, 957)
    assert tokenizer.decode([*ids, 957, *ids]) == tokenizer.decode([*ids, 2, *ids]) == "a red circle"
