"""What several test modules build: a micro checkpoint, exports, and command lines run in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from verifier.checkpoint import EMBEDDED

MICRO_IMAGES = ("blank.png", "wide_0.png", "small_97x131.png")
EMBEDDED_PTE = EMBEDDED / "llava_tiny.pte"


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
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)


def make_micro_model(folder: Path, *arguments: str, seed: int = 0, **text_fields: object) -> None:
    """A micro checkpoint with golden answers to three images, and its export `model.pte`."""
    from golden.llava_tiny.make.golden import write_golden
    from verifier.checkpoint import open_checkpoint
    from verifier.progress import hushed

    make_micro_checkpoint(folder, seed=seed, **text_fields)
    (folder / "images").mkdir()
    images = [EMBEDDED / "images" / name for name in MICRO_IMAGES]
    paths = [Path(shutil.copy(image, folder / "images")) for image in images]
    with hushed():
        write_golden(open_checkpoint(folder), paths, folder)
    assert export(folder, folder / "model.pte", *arguments) == 0


def export(model: Path | None, pte: Path, *arguments: str) -> int:
    """Run the exporter's command line in this process."""
    from verifier.export_llava import main

    chosen = [] if model is None else ["--model", str(model)]
    return main(["--pte-name", str(pte), "--quiet", *chosen, *arguments])


def verify(pte: Path | str, *arguments: str) -> int:
    """Run the verifier's command line in this process."""
    from verifier.test_pte import main

    return main([str(pte), "--quiet", *arguments])


def wheel_file(name: str) -> Path:
    """A file of the installed ExecuTorch."""
    import executorch

    return Path(next(iter(executorch.__path__))) / name
