"""A model by its id on the hub, with the real client against a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hub_server import COMMIT, GATED, MODEL, PRIVATE, Hub, serving
from verifier.core.python import ROOT
from verifier.families.checkpoint import EMBEDDED
from verifier.families.hub import hub_name
from verifier.families.registry import open_checkpoint

ASK = """
import sys
from verifier.core.errors import CheckpointError
from verifier.families.hub import hub_snapshot
try:
    print(hub_snapshot(sys.argv[1]))
except CheckpointError as error:
    sys.exit(str(error))
"""
SMALL = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja"),
)
BEHIND = 21 << 20
"""Where a download of 32 MiB breaks off: the client writes 10 MiB at a time, and what did not come as a whole is asked for again."""
UNREAD = (
    *(
        "README.md",
        ".gitattributes",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "trainer_state.json",
    ),
    *("images/figure.png", "adapter_model.safetensors", "runs/events"),
)


def _write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A model of two shards with every file that is read, and as many that are not."""
    folder = tmp_path / "repository"
    for name in (*SMALL, *UNREAD):
        _write(folder, name, name.encode() * 10)
    _write(folder, "config.json", b"{}")
    _shard(folder, "one.safetensors", "two.safetensors")
    with serving(folder) as served:
        yield served


def _shard(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        _write(folder, name, bytes(range(256)) * (2 << 16) + bytes([number]))
    weight_map = {f"tensor{number}": name for number, name in enumerate(names)}
    _write(folder, "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def _environment(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return (
        kept
        | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": ROOT,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        | more
    )


def _ask(hub: Hub, tmp_path: Path, model: str = MODEL, **more: str) -> tuple[Path | None, str]:
    """The folder of a model, and what is said if there is none, in a process of its own: the client reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, model],
        env=_environment(hub, tmp_path, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.split()
    return (Path(lines[-1]) if done.returncode == 0 else None), done.stderr


def test_what_is_needed_is_fetched_and_no_more(hub: Hub, tmp_path: Path) -> None:
    """Every small file in all its forms, and the weights that the index names; all with the hub's bytes, under the hub's name."""
    folder, said = _ask(hub, tmp_path)
    assert folder is not None, said
    wanted = sorted((*SMALL, "model.safetensors.index.json", "one.safetensors", "two.safetensors"))
    assert hub.fetched() == wanted
    assert all((folder / name).read_bytes() == (hub.folder / name).read_bytes() for name in wanted)
    assert (hub_name(folder), folder.name) == (MODEL, COMMIT)


def test_one_file_of_weights_goes_before_an_index(hub: Hub, tmp_path: Path) -> None:
    """As transformers takes them: no byte of the shards beside it."""
    _write(hub.folder, "model.safetensors", b"weights")
    assert _ask(hub, tmp_path)[0] is not None
    assert [name for name in hub.fetched() if name.endswith("safetensors")] == ["model.safetensors"]


def test_golden_data_comes_with_its_pictures(hub: Hub, tmp_path: Path) -> None:
    """Where the model has a golden set."""
    _write(hub.folder, "golden.json", b"{}")
    assert _ask(hub, tmp_path)[0] is not None
    assert "images/figure.png" in hub.fetched()


def test_second_run_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    """Offline, by the setting or because the hub is down: what is kept; and with it up, no file twice."""
    folder, _ = _ask(hub, tmp_path)
    hub.asked.clear()
    assert _ask(hub, tmp_path)[0] == folder
    assert hub.fetched() == []
    hub.asked.clear()
    assert _ask(hub, tmp_path, HF_HUB_OFFLINE="1")[0] == folder
    assert hub.asked == []
    hub.down = True
    assert _ask(hub, tmp_path)[0] == folder
    assert _ask(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:1")[0] == folder


def test_broken_download_goes_on_within_a_run(hub: Hub, tmp_path: Path) -> None:
    """The connection ends in the middle, twice: the rest is asked for, and the file is whole."""
    hub.cut["two.safetensors"] = (BEHIND, 2)
    folder, said = _ask(hub, tmp_path)
    assert folder is not None, said
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("two.safetensors")]
    assert ranges[0] == ""
    assert len(ranges) == 3 and all(asked.startswith("bytes=") for asked in ranges[1:])
    assert (folder / "two.safetensors").read_bytes() == (hub.folder / "two.safetensors").read_bytes()


def test_broken_download_is_taken_up_by_the_next_run(hub: Hub, tmp_path: Path) -> None:
    """The hub goes on breaking off: refused, with a way out. The next run asks for the file that broke, and for no other. Offline between the two, what
    is kept is not taken for the whole."""
    hub.cut["two.safetensors"] = (BEHIND, 1000)
    folder, said = _ask(hub, tmp_path)
    assert folder is None
    assert MODEL in said and "run again" in said
    assert "not kept here as a whole" in _ask(hub, tmp_path, HF_HUB_OFFLINE="1")[1]
    hub.cut.clear()
    hub.asked.clear()
    folder, said = _ask(hub, tmp_path)
    assert folder is not None, said
    assert hub.fetched() == ["two.safetensors"]
    assert (folder / "two.safetensors").read_bytes() == (hub.folder / "two.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("some-org/nothing", ("there is no model some-org/nothing on the hub", "check the spelling")),
        (PRIVATE, ("or it is private", "hf auth login")),
        (GATED, ("does not give some-org/gated to everybody", "accept its terms")),
        ("some org/tiny", ("no such checkpoint: some org/tiny", "ORG/NAME")),
    ],
)
def test_unknown_model_is_named(hub: Hub, tmp_path: Path, model: str, said: tuple[str, ...]) -> None:
    """With what to do about it."""
    folder, message = _ask(hub, tmp_path, model)
    assert folder is None
    assert all(words in message for words in said), message


def test_hub_that_cannot_be_asked_is_named(hub: Hub, tmp_path: Path) -> None:
    """Offline with nothing kept, no server, and a server that fails: the model, and the way out of each."""
    for more, words in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=0"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "check the connection"),
    ):
        folder, said = _ask(hub, tmp_path, **more)
        assert folder is None
        assert f"{MODEL} is not kept here" in said and words in said
    hub.down = True
    folder, said = _ask(hub, tmp_path)
    assert folder is None
    assert MODEL in said


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (["config.json"], "no config.json"),
        (["model.safetensors.index.json"], "no model.safetensors or model.safetensors.index.json"),
        (["two.safetensors"], "no two.safetensors"),
    ],
)
def test_model_that_lacks_a_file_is_named(hub: Hub, tmp_path: Path, removed: list[str], said: str) -> None:
    """No folder is given as if it were whole."""
    for name in removed:
        (hub.folder / name).unlink()
    folder, message = _ask(hub, tmp_path)
    assert folder is None
    assert f"the model {MODEL} on the hub is no whole checkpoint" in message and said in message


def test_hub_id_is_verified(tmp_path: Path) -> None:
    """The whole command with nothing but an id: llava_tiny from a hub, its weights read, reported by its name; the second time offline."""
    names = (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "chat_template.jinja",
    )
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in (*names, "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    report = tmp_path / "report.json"
    words = ["verifier.test_pte", str(EMBEDDED / "llava_tiny.pte"), "--model", MODEL, "--checks", "structure.*"]
    with serving(folder) as hub:
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = subprocess.run(
                [sys.executable, "-m", *words, "--quiet", "--json", str(report)],
                env=_environment(hub, tmp_path, **more),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found = json.loads(report.read_text())["checkpoint"]
            assert (found["id"], found["sha256"]) == (MODEL, open_checkpoint().sha256)
