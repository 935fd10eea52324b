"""ExecuTorch's own `export_all` on a local checkpoint: `python -m tests.bench.upstream CHECKPOINT OUT.pte`.

Its module imports torchvision, fetches from the hub and downloads an image when constructed. Here a stand-in module
gives it the one function that its model calls, and the constructor is bypassed; the export itself is untouched.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

import torch


def _stand_in_for_torchvision() -> None:
    def normalize(image: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
        return (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    names = (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.v2",
        "torchvision.transforms.v2.functional",
    )
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    modules[names[3]].normalize = normalize
    for name in names[1:]:
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, modules[name])
    sys.modules.update(modules)


def make_llava_model(checkpoint: Path) -> Any:
    """Upstream's `LlavaModel` on a local checkpoint of any geometry."""
    # transformers first: it must find out by itself that there is no torchvision
    from transformers import AutoProcessor, CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

    if not (AutoProcessor and CLIPImageProcessor):
        raise RuntimeError("transformers lacks what upstream's model imports")
    processor = LlavaProcessor.from_pretrained(checkpoint)
    _stand_in_for_torchvision()
    from executorch.examples.models.llava import model as upstream

    hugging_face = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    for name in ("vision_tower", "multi_modal_projector", "language_model"):  # where upstream looks for them
        setattr(type(hugging_face), name, property(lambda self, name=name: getattr(self.model, name)))
    text = hugging_face.config.text_config
    original = upstream.ModelArgs

    def with_geometry(**fields: Any) -> Any:
        """Upstream knows one geometry; this is the checkpoint's."""
        fields |= {"n_layers": text.num_hidden_layers, "dim": text.hidden_size, "n_heads": text.num_attention_heads}
        return original(**fields, head_dim=text.head_dim)

    upstream.ModelArgs = with_geometry
    made = object.__new__(upstream.LlavaModel)
    made.use_sdpa_with_kv_cache_op, made.max_context_len, made.max_seq_len = True, 768, 768
    made.model = hugging_face
    made.processor = processor
    made.tokenizer, made.image_processor = made.processor.tokenizer, made.processor.image_processor
    made.resized_image = (torch.zeros(3, 336, 250, dtype=torch.uint8),)
    before, after = torch.arange(3, 60)[None], torch.arange(3, 30)[None]
    made.input = (before, *made.resized_image, after)
    return made


def main() -> None:
    """Export, and print the seconds that `export_all` took."""
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    made = make_llava_model(checkpoint)
    made.get_example_inputs = lambda: made.resized_image
    from executorch.examples.models.llava.export_llava import export_all

    begun = time.perf_counter()
    program = export_all(made)
    seconds = time.perf_counter() - begun
    with out.open("wb") as file:
        program.write_to_file(file)
    print(f"SECONDS {seconds:.1f}")


if __name__ == "__main__":
    main()
