"""optimum-executorch's own `main_export` on a local checkpoint: `python optimum.py CHECKPOINT OUT_FOLDER [key=value ...]`.

Runs in an environment of its own (`tests.bench.foreign.make_environment`): its transformers is older than ours, so nothing of ours is imported.
The exporter downloads an example picture; here it gets a random one of the same shape. The export itself is untouched. `none` takes an option away.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.executorch import integrations, main_export

OPTIONS = {
    "use_custom_sdpa": True,
    "use_custom_kv_cache": True,
    "qlinear": "8da4w",
    "qlinear_group_size": 128,
    "qembedding": "8w",
    "max_length": 768,
}


def read_option(argument: str) -> tuple[str, Any]:
    """`key=value`, the value as the exporter takes it: a number, True, False, None or text."""
    key, value = argument.split("=", 1)
    words: dict[str, Any] = {"True": True, "False": False, "none": None}
    return key, words.get(value, int(value) if value.isdigit() else value)


def main(checkpoint: str, out: str, *arguments: str) -> None:
    """Export into OUT_FOLDER/model.pte, and print the seconds."""
    torch.manual_seed(0)
    options = OPTIONS | dict(read_option(argument) for argument in arguments)
    side = json.loads((Path(checkpoint) / "config.json").read_text())["vision_config"]["image_size"]

    def example(self: Any) -> tuple[torch.Tensor, None]:
        return torch.rand(1, 3, side, side).to(dtype=self.model.dtype), None

    integrations.VisionExportableModule.prepare_export_inputs = example
    Path(out).mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    kept = {key: value for key, value in options.items() if value is not None}
    main_export(checkpoint, "multimodal-text-to-text", "xnnpack", out, **kept)
    print(f"SECONDS {time.perf_counter() - begun:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
