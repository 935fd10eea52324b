"""ExecuTorch's own `export_all` on a local checkpoint: `python -m tests.bench.upstream CHECKPOINT OUT.pte`.

Its module imports torchvision, fetches from the hub and downloads an image when constructed. Here a stand-in module
gives it the one function that its model calls, and the constructor is bypassed; the export itself is untouched.
"""

from __future__ import annotations

import argparse
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


def mend(made: Any, pictures: list[torch.Tensor]) -> None:
    """Take away the two limits of upstream's files: a token embedding of as many tokens as the example prompt, and int8 ranges of one picture."""
    from executorch.examples.models.llava import export_llava
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
    from executorch.extension.llm.export import builder

    prepare = builder.prepare_pt2e

    def prepare_and_observe(module: Any, quantizer: Any) -> Any:
        prepared = prepare(module, quantizer)
        for picture in pictures:
            prepared(picture)
        return prepared

    export_llava.HintBasedSymShapeEvalPass = ConstraintBasedSymShapeEvalPass
    builder.prepare_pt2e = prepare_and_observe
    made.resized_image = (pictures[0],)


def choose(*, group_size: int, affine: bool) -> None:
    """Other groups and another quantizer than upstream's."""
    from executorch.examples.models.llava import export_llava

    transform = export_llava.get_quant_weight_transform

    def chosen(**fields: Any) -> Any:
        return transform(**(fields | {"group_size": group_size, "quantize_with_hqq": not affine}))

    export_llava.get_quant_weight_transform = chosen


def _pictures(checkpoint: Path) -> list[torch.Tensor]:
    """Our calibration pictures, uint8 [3, h, w] as this checkpoint's programs take them."""
    from verifier.export.run import CALIBRATION, calibration_images
    from verifier.families.pixels.image_file import read_image
    from verifier.families.registry import open_checkpoint, open_family

    pixels = open_family(open_checkpoint(str(checkpoint))).pixels
    made = [pixels.prepare(read_image(path)) for path in calibration_images(CALIBRATION)]
    return sorted(
        made, key=lambda picture: -picture.shape[1] * picture.shape[2] * (picture.shape[1] != picture.shape[2])
    )


def main() -> None:
    """Export, and print the seconds that `export_all` took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--mended", action="store_true", help="without upstream's limits of prompt length and of int8 ranges"
    )
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--affine", action="store_true", help="affine instead of HQQ")
    parser.add_argument("--no-custom-sdpa", action="store_true")
    options = parser.parse_args()
    pictures = _pictures(options.checkpoint) if options.mended else []
    made = make_llava_model(options.checkpoint)
    made.use_sdpa_with_kv_cache_op = not options.no_custom_sdpa
    if options.mended:
        mend(made, pictures)
    choose(group_size=options.group_size, affine=options.affine)
    made.get_example_inputs = lambda: made.resized_image
    from executorch.examples.models.llava.export_llava import export_all

    begun = time.perf_counter()
    program = export_all(made)
    seconds = time.perf_counter() - begun
    with options.out.open("wb") as file:
        program.write_to_file(file)
    print(f"SECONDS {seconds:.1f}")


if __name__ == "__main__":
    main()
