"""Models small enough to be made and exported in a minute: random LLaVAs of two small layers on each side."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import save_file

from verifier.commands.golden import answer, write_entries
from verifier.core.errors import ExportError
from verifier.core.progress import hushed
from verifier.export.run import CALIBRATION, calibration_images
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.definition import build_definition
from verifier.families.llava.prompt import DEFAULT_QUESTION
from verifier.families.registry import open_checkpoint
from verifier.faults.lowered import keep, reuse

MICRO_IMAGES = ("blank.png", "wide_0.png", "small_97x131.png")
_TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


def micro_config(**text_fields: object) -> dict[str, object]:
    """LLaVA-1.5 with two layers of 64 on each side, 56 px images (16 tokens), grouped-query attention."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 64,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1088,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    } | text_fields
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 1024,
        "image_seq_length": 16,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
    }


def make_micro_checkpoint(folder: Path, *, seed: int = 0, **text_fields: object) -> None:
    """Write a random micro checkpoint with llava_tiny's tokenizer; norms and biases are random too."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig.from_dict(micro_config(**text_fields))
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            elif "position_embedding" not in name:
                parameter.mul_(2.0)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(micro_config(**text_fields)))
    for name in _TOKENIZER:
        shutil.copy(EMBEDDED / name, folder / name)
    side_px = config.vision_config.image_size
    processor = json.loads((EMBEDDED / "processor_config.json").read_text())
    processor["image_processor"] |= {
        "size": {"shortest_edge": side_px},
        "crop_size": {"height": side_px, "width": side_px},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))


def answer_images(folder: Path, *, questions: tuple[str, ...] = (DEFAULT_QUESTION, DEFAULT_QUESTION, "")) -> None:
    """Write golden answers of the checkpoint in a folder to its images, by the fp32 definition; questions take turns."""
    checkpoint = open_checkpoint(str(folder))
    definition = build_definition(checkpoint)
    images = sorted((folder / "images").glob("*.*"))
    entries = [
        answer(
            checkpoint,
            definition,
            path,
            kind=path.stem.partition("_")[0],
            question=questions[number % len(questions)],
        )
        for number, path in enumerate(images)
    ]
    write_entries(checkpoint, folder, entries, "made anew from the images")


def calibration_halves() -> tuple[Sequence[Path], Sequence[Path]]:
    """The calibration images in two halves that both have padded ones, two of the four. An export that has seen no padding loses up to
    20 dB on padded images: it is not as clean as others."""
    images = calibration_images(CALIBRATION)
    return images[: len(images) // 2], images[len(images) // 2 :]


def calibration_draw(seed: int) -> list[Path]:
    """Three quarters of the calibration images."""
    images = calibration_images(CALIBRATION)
    return random.Random(seed).sample(images, 3 * len(images) // 4)


def link_images(folder: Path, images: Sequence[Path]) -> None:
    """Make a folder of these images alone, to be given as `--calibration`."""
    folder.mkdir()
    for path in images:
        (folder / path.name).symlink_to(path)


def make_calibrated_model(folder: Path) -> Path:
    """A micro checkpoint with golden answers, its export `model.pte`, and bands beside it, from two variants whose int8 ranges come from
    either half of the calibration images. Its lowered methods are kept. Raises `ExportError`."""
    _answered_checkpoint(folder)
    pte = folder / "model.pte"
    keep(folder, lambda: _export(folder, pte))
    variants = []
    for number, images in enumerate(calibration_halves()):
        half = folder / f"half{number}"
        link_images(half, images)
        variants.append(half / "variant.pte")
    context = multiprocessing.get_context("fork")  # the kept methods come along
    started = [context.Process(target=_variant, args=(folder, variant)) for variant in variants]
    for process in started:
        process.start()
    for process, variant in zip(started, variants, strict=True):
        process.join()
        if process.exitcode != 0:
            raise ExportError("a micro model could not be exported", got=process.exitcode, where=variant)
    _calibrate(pte, variants)
    return pte


def _variant(model: Path, pte: Path) -> None:
    reuse(model, "vision_encoder")
    _export(model, pte, "--calibration", str(pte.parent))


def _calibrate(pte: Path, variants: Sequence[Path]) -> None:
    """Write the bands of a micro model beside it. Raises `ExportError`."""
    from verifier.commands.calibrate import main as calibrate

    words = [word for variant in variants for word in ("--variant", str(variant))]
    with redirect_stdout(io.StringIO()):
        status = calibrate([str(pte), "--model", str(pte.parent), *words])
    if status != 0:
        raise ExportError("a micro model could not be calibrated", got=status, where=pte)


def _export(model: Path, pte: Path, *arguments: str) -> None:
    from verifier.commands.export import main as export

    status = export(["--quiet", "--model", str(model), "--pte-name", str(pte), *arguments])
    if status != 0:
        raise ExportError("a micro model could not be exported", got=status, where=pte)


def _answered_checkpoint(folder: Path, *, seed: int = 0, **text_fields: object) -> None:
    make_micro_checkpoint(folder, seed=seed, **text_fields)
    (folder / "images").mkdir()
    for name in MICRO_IMAGES:
        shutil.copy(EMBEDDED / "images" / name, folder / "images")
    with hushed():
        answer_images(folder)


def make_micro_model(folder: Path, *arguments: str, seed: int = 0, **text_fields: object) -> Path:
    """A micro checkpoint with golden answers to three images, and its export `model.pte`. Raises `ExportError`."""
    _answered_checkpoint(folder, seed=seed, **text_fields)
    pte = folder / "model.pte"
    _export(folder, pte, *arguments)
    return pte
