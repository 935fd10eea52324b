"""The manifest beside a `.pte`: what the file was made from, and how. `llava.pte` has `llava.manifest.json`."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from verifier.core.errors import ManifestError, UsageError
from verifier.core.files import replacing
from verifier.core.records import JsonObject, read_record
from verifier.core.system import cpu_model, machine
from verifier.core.types import Recipe

SCHEMA = "verifier.manifest/1"
PACKAGES = ("torch", "executorch", "torchao", "transformers", "numpy")
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """Identity of file and checkpoint, recipe, versions, CPU kind, calibration images (name -> SHA-256), and what the checkpoint's tokenizer
    does around special tokens (None in manifests from before that was recorded)."""

    pte_sha256: str
    pte_bytes: int
    checkpoint_id: str
    checkpoint_sha256: str
    recipe: Recipe
    versions: dict[str, str]
    cpu: dict[str, str]
    calibration: dict[str, str]
    prompt_rule: JsonObject | None = None


def manifest_path(pte: Path) -> Path:
    """Where the manifest of a `.pte` lies."""
    return pte.with_name(f"{pte.stem}.manifest.json")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a program's bytes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def cpu_kind() -> dict[str, str]:
    """Architecture, model, and the vector extension that PyTorch uses here: calibration rounds differently on another kind.

    The extension alone does not tell: two AVX-512 machines of different models measured activation ranges that differ in
    the last bits (their matrix libraries choose by model).
    """
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": machine(), "capability": capability, "model": cpu_model()}


def write_manifest(manifest: Manifest, pte: Path) -> Path:
    """Write the manifest of `pte`; returns its path."""
    text = {
        "schema": SCHEMA,
        "pte": {"name": pte.name, "sha256": manifest.pte_sha256, "bytes": manifest.pte_bytes},
        "checkpoint": {"id": manifest.checkpoint_id, "sha256": manifest.checkpoint_sha256},
        "recipe": {"name": manifest.recipe.name} | manifest.recipe.as_json(),
        "versions": manifest.versions,
        "cpu": manifest.cpu,
        "calibration": manifest.calibration,
    }
    text |= {} if manifest.prompt_rule is None else {"prompt_rule": manifest.prompt_rule}
    path = manifest_path(pte)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(text, indent=2) + "\n")
    return path


def read_manifest(pte: Path) -> Manifest | None:
    """The manifest of a `.pte`, or None if there is none. Raises `ManifestError` for one that cannot be used."""
    path = manifest_path(pte)
    if not path.is_file():
        return None
    fix = "export again, or remove the manifest to verify without one"
    return read_record(
        path,
        _manifest,
        what="the manifest cannot be used",
        error=ManifestError,
        schema=SCHEMA,
        fix=fix,
        limit_bytes=_LIMIT_BYTES,
    )


def _manifest(record: JsonObject) -> Manifest:
    return Manifest(
        pte_sha256=str(record["pte"]["sha256"]),
        pte_bytes=int(record["pte"]["bytes"]),
        checkpoint_id=str(record["checkpoint"]["id"]),
        checkpoint_sha256=str(record["checkpoint"]["sha256"]),
        recipe=_recipe(record["recipe"]),
        versions={str(k): str(v) for k, v in record["versions"].items()},
        cpu={str(k): str(v) for k, v in record["cpu"].items()},
        calibration={str(k): str(v) for k, v in record["calibration"].items()},
        prompt_rule=_prompt_rule(record.get("prompt_rule")),
    )


def _prompt_rule(said: Any) -> JsonObject | None:
    if said is not None and not isinstance(said, dict):
        raise ValueError(f"prompt_rule is {said!r}")
    return said


def _recipe(text: JsonObject) -> Recipe:
    known = {f.name: f.type for f in fields(Recipe)}
    values = {name: value for name, value in text.items() if name in known}
    for name, value in values.items():
        if type(value) is not type(getattr(Recipe(), name)):
            raise ValueError(f"recipe.{name} is {value!r}")
    try:
        return Recipe(**values)
    except UsageError as error:
        raise ValueError(error.one_line) from error
