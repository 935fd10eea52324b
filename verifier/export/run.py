"""The export itself: checkpoint and recipe in, `.pte`, manifest and runner artifacts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.core import upstream
from verifier.core.errors import ExportError, UsageError
from verifier.core.files import replacing, sha256_of_file
from verifier.core.progress import Progress, hushed
from verifier.core.types import Recipe
from verifier.core.versions import require_names
from verifier.export.image_tensor import save_image_tensor
from verifier.export.lean import lean_lowering
from verifier.export.lower import Metadata, join, lower_method, metadata, to_edge, to_program
from verifier.export.manifest import Manifest, cpu_kind, package_versions, write_manifest
from verifier.export.quantize import require_whole_groups
from verifier.export.trace import trace_text_decoder, trace_token_embedding, trace_vision_encoder
from verifier.families.checkpoint import EMBEDDED, Checkpoint
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER, ROLES
from verifier.families.pixels.image_file import READABLE, list_images, read_image
from verifier.families.registry import open_family
from verifier.families.tokens.agreement import open_tokenizer
from verifier.families.tokens.ending import end_ids
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.families.tokens.tokenizer_files import TOKENIZER_JSON, TOKENIZER_MODEL

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager
    from torch.export import ExportedProgram

CALIBRATION = EMBEDDED / "calibration"
MIN_CALIBRATION_IMAGES = 2
_NAMED = 20
"""Files that a warning names, at most."""


@dataclass(frozen=True)
class Exported:
    """Paths of what an export wrote."""

    pte: Path
    manifest: Path
    artifacts: tuple[Path, ...]


def calibration_images(folder: Path, *, warn: Callable[[str], None] = lambda _text: None) -> tuple[Path, ...]:
    """Images of a folder in name order; `warn` is told what is left out. Raises `UsageError` for fewer than two, because one image gives
    ranges for itself only, and `ImageError` for one that cannot be read."""
    images, others = list_images(folder) if folder.is_dir() else ((), ())
    if len(images) < MIN_CALIBRATION_IMAGES:
        raise UsageError(
            "too few calibration images",
            got=f"{len(images)} in {folder}" + (f", beside {_names(others)}" if others else ""),
            expected=f"at least {MIN_CALIBRATION_IMAGES} files of {READABLE}",
            fix="give --calibration a folder with a dozen typical images",
        )
    if others:
        warn(f"{folder}: skipped {_names(others)}: not {READABLE}")
    return images


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def lower_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, images: Sequence[Path], progress: Progress, *, plain: bool = False
) -> ExecutorchProgramManager:
    """Quantize, trace and lower all three methods, one after the other; `plain` does it as upstream does, slowly."""
    with hushed() as stream, lean_lowering(plain=plain):
        progress.stream = stream
        facts = _metadata(checkpoint, recipe)
        traces = _traces(checkpoint, recipe, images)
        if plain:
            edge = to_edge({method: trace() for method, trace in traces.items()}, facts)
        else:
            edge = join({method: lowered(method, trace, progress) for method, trace in traces.items()}, facts)
        with progress.stage("plan memory and emit"):
            return to_program(edge)


def lowered(method: str, trace: Callable[[], ExportedProgram], progress: Progress) -> ExportedProgram:
    """One method traced, and lowered to XNNPACK."""
    with progress.stage(f"{method}: quantize and trace"):
        program = trace()
    with progress.stage(f"{method}: lower to XNNPACK"):
        return lower_method(method, program)


def _traces(checkpoint: Checkpoint, recipe: Recipe, images: Sequence[Path]) -> dict[str, Callable[[], ExportedProgram]]:
    pixels = open_family(checkpoint).pixels

    def vision_encoder() -> ExportedProgram:
        square = recipe.static_image_shape
        calibration = [pixels.prepare(read_image(path), square=square) for path in images]
        return trace_vision_encoder(checkpoint, recipe, calibration)

    return {
        ENCODER: vision_encoder,
        EMBEDDING: partial(trace_token_embedding, checkpoint, recipe),
        DECODER: partial(trace_text_decoder, checkpoint, recipe),
    }


def _metadata(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Metadata]:
    tokenizer = Tokenizer(checkpoint.directory)
    vocabulary = checkpoint.geometry.text.vocabulary
    ends = end_ids(checkpoint.directory, checkpoint.config, tokenizer_id=tokenizer.eos_id)
    return metadata(recipe, vocabulary=vocabulary, bos_id=tokenizer.bos_id, eos_ids=ends)


def export_llava(
    checkpoint: Checkpoint,
    recipe: Recipe,
    pte: Path,
    *,
    images: Sequence[Path],
    with_artifacts: bool = False,
    sample_image: Path | None = None,
    profile_memory: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a checkpoint to `pte` and its manifest. `with_artifacts` adds `tokenizer.bin`, `image.pt` and `image.npy` beside it,
    `profile_memory` a Chrome trace of the planned arena per method. Raises `VerifierError` subclasses."""
    progress = progress or Progress(quiet=True)
    require_names()
    require_whole_groups(checkpoint.geometry.text, recipe)
    checkpoint.require_usable()
    tokenizer = open_tokenizer(checkpoint)
    if with_artifacts and tokenizer.files.model is None:
        raise UsageError(
            "tokenizer.bin can be made of tokenizer.model alone",
            got=f"a checkpoint with {TOKENIZER_JSON}",
            fix=f"leave out --with-artifacts, and ship {TOKENIZER_JSON}",
        )
    with replacing(pte) as temporary:  # an unwritable folder is refused before the work, not after it
        program = lower_checkpoint(checkpoint, recipe, images, progress)
        with progress.stage("write"):
            with temporary.open("wb") as file:
                program.write_to_file(file)
            manifest = Manifest(
                pte_sha256=sha256_of_file(temporary),
                pte_bytes=temporary.stat().st_size,
                checkpoint_id=checkpoint.name,
                checkpoint_sha256=checkpoint.sha256,
                recipe=recipe,
                versions=package_versions(),
                cpu=cpu_kind(),
                calibration={path.name: sha256_of_file(path) for path in images},
                prompt_rule=tokenizer.rule.as_json(),
            )
    written = write_manifest(manifest, pte)
    artifacts: list[Path] = []
    if with_artifacts:
        artifacts += _write_artifacts(checkpoint, pte.parent, sample_image or images[0])
    if profile_memory:
        artifacts += _profile_memory(program, pte)
    return Exported(pte, written, tuple(artifacts))


def _write_artifacts(checkpoint: Checkpoint, folder: Path, image: Path) -> list[Path]:
    tokenizer, images = folder / "tokenizer.bin", [folder / "image.pt", folder / "image.npy"]
    with replacing(tokenizer) as temporary, hushed():
        upstream.LLAMA2C_TOKENIZER.resolve()(str(checkpoint.directory / TOKENIZER_MODEL)).export(str(temporary))
    prepared = open_family(checkpoint).pixels.prepare(read_image(image))
    with hushed():
        for path in images:
            save_image_tensor(prepared, path)
    return [tokenizer, *images]


def _profile_memory(program: ExecutorchProgramManager, pte: Path) -> list[Path]:
    profile = upstream.MEMORY_PROFILE.resolve()
    traces = []
    for method in sorted(m for m in program.methods if m in ROLES):
        trace = pte.with_name(f"{pte.stem}_{method}.memory.json")
        with replacing(trace) as temporary:
            try:
                profile(program, str(temporary), method_name=method)
            except (RuntimeError, KeyError, AttributeError) as error:
                raise ExportError("the memory profile could not be made", got=error, where=method) from error
        traces.append(trace)
    return traces
