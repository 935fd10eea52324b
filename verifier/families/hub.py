"""A model of the hub as a checkpoint's folder: what the gate reads of it, in the user's cache of Hugging Face, and nothing else.

`huggingface_hub` finds, resumes and keeps files; where the hub cannot be asked it gives what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verifier.core.errors import CheckpointError
from verifier.core.records import JsonObject, read_record
from verifier.families.shards import INDEX, SINGLE

FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    INDEX,
    "golden.json",
    "tolerances.json",
    "budgets.json",
)
"""What is read besides weights, where the model has it. No pickled weights, no second set of weights in another format."""
_GOLDEN_IMAGES = "images/*"


def hub_snapshot(model: str) -> Path:
    """The folder of a model by its id ORG/NAME. Raises `CheckpointError` if there is none, if it lacks what a checkpoint needs, or if it cannot be
    fetched whole."""
    folder = _fetch(model, FILES)
    revision = folder.name  # of one revision, whatever is committed meanwhile
    if not (folder / "config.json").is_file():
        raise _lacking(model, "config.json", "give the id of a model in the format of transformers")
    if (folder / "golden.json").is_file():
        _fetch(model, [_GOLDEN_IMAGES], revision)
    _fetch(model, [SINGLE], revision)
    if (folder / SINGLE).is_file():
        return folder
    names = _weight_files(folder / INDEX)
    if not names:
        raise _lacking(
            model,
            f"{SINGLE} or {INDEX}",
            "convert its weights to safetensors (save_pretrained of transformers), and give --model that folder",
        )
    _fetch(model, names, revision)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise _lacking(
            model, ", ".join(missing[:4]), "its index names them: give another model, or ask its owner to complete it"
        )
    return folder


def hub_name(folder: Path) -> str | None:
    """ORG/NAME of a folder in Hugging Face's cache; None for other folders."""
    kept = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not kept.startswith("models--"):
        return None
    return kept.removeprefix("models--").replace("--", "/", 1)


def _weight_files(index: Path) -> list[str]:
    """File names of an index's weight map, none without one."""
    if not index.is_file():
        return []

    def names(record: JsonObject) -> list[str]:
        return sorted({str(name) for name in record["weight_map"].values()})

    what = "the index of the weights cannot be read"
    return [name for name in read_record(index, names, what=what, error=CheckpointError) if Path(name).name == name]


def _fetch(model: str, names: Sequence[str], revision: str | None = None) -> Path:
    """The folder of a model, with those of the named files that it has. Raises `CheckpointError`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*names]))
    except Exception as error:  # of the client, of its HTTP library, of the disk
        raise _refusal(model, error) from error


def _refusal(model: str, error: Exception) -> CheckpointError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    said = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, HFValidationError):
        what, fix = f"no such checkpoint: {model}", "give --model a folder, or the id ORG/NAME of a model on the hub"
    elif isinstance(error, GatedRepoError):
        what = f"the hub does not give {model} to everybody"
        fix = f"accept its terms at {constants.ENDPOINT}/{model}, then log in: hf auth login, or set HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"there is no model {model} on the hub, or it is private"
        fix = "check the spelling; for a private one log in: hf auth login, or set HF_TOKEN"
    elif isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        what = f"{model} is not kept here as a whole, and HF_HUB_OFFLINE keeps the hub from being asked"
        fix = "run once with HF_HUB_OFFLINE=0, or give --model a folder"
    elif isinstance(error, LocalEntryNotFoundError):
        what = f"{model} is not kept here as a whole, and the hub cannot be asked"
        fix = f"check the connection to {constants.ENDPOINT} (HF_ENDPOINT), or give --model a folder"
    else:
        what = f"{model} could not be fetched from the hub"
        fix = "run again: files that are here already are not fetched again"
    return CheckpointError(what, got=said[0][:300], expected="a folder, or a model on the hub", where=model, fix=fix)


def _lacking(model: str, names: str, fix: str) -> CheckpointError:
    return CheckpointError(
        f"the model {model} on the hub is no whole checkpoint",
        got=f"no {names}",
        expected=f"{names} among its files",
        fix=fix,
    )
