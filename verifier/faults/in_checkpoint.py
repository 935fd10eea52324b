"""Faults in a checkpoint's files and in what a program tells of them: special tokens, metadata, weights that are no numbers, stale copies."""

from __future__ import annotations

import json
from pathlib import Path

from verifier.core.errors import ArtifactError
from verifier.faults.fault import NOT_VERIFIED, Fault, Work, fault

STATIC = "structure.*,weights.*"
UP = "layers.1.mlp.up_proj.weight"


def _rename(work: Work, *methods: str) -> None:
    """Let metadata methods have names that no runner asks for."""
    data = work.pte.read_bytes()
    for method in methods:
        name = method.encode() + b"\0"
        if data.count(name) != 1:
            raise ArtifactError("the method's name is not unique in the file", got=method, where=work.pte)
        data = data.replace(name, b"X" + name[1:])
    work.pte.write_bytes(data)


@fault(
    "bytes",
    "get_max_context_len is missing: some runners assume 128",
    rows=(70,),
    step="lowering",
    place="get_max_context_len is missing",
    quick=STATIC,
)
def no_context_length(work: Work) -> None:
    """Prompts are cut at the image."""
    _rename(work, "get_max_context_len")


@fault("bytes", "get_eos_ids and get_bos_id are missing", rows=(70,), step="lowering", place="get_bos_id", quick=STATIC)
def no_special_tokens(work: Work) -> None:
    """Runners take what their tokenizer file says."""
    _rename(work, "get_eos_ids", "get_bos_id")


@fault(
    "use",
    "generation_config.json names two ids that end an answer, the program one",
    rows=(71,),
    step="lowering",
    place="get_eos_ids",
    quick=STATIC,
)
def one_end_of_two(work: Work) -> None:
    """Answers that end with the other one go on until the cache is full."""
    path = work.own_model() / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 957]}))


def _weights(work: Work) -> tuple[Path, dict[str, object], str]:
    """The weight file of the gate's own copy, its tensors, and the name of one."""
    from safetensors.torch import load_file

    path = work.own_model() / "model.safetensors"
    tensors = load_file(path)
    return path, tensors, next(name for name in tensors if name.endswith(UP))


def _set_weight(work: Work, value: float) -> None:
    from safetensors.torch import save_file

    path, tensors, name = _weights(work)
    tensors[name].view(-1)[7] = value  # type: ignore[attr-defined]
    save_file(tensors, path, {"format": "pt"})


@fault(
    "use",
    "one weight of the checkpoint is infinite",
    rows=(72,),
    step="mapping",
    place="not a finite number.*up_proj",
    status=NOT_VERIFIED,
    quick=STATIC,
)
def infinite_weight(work: Work) -> None:
    """It overflowed in half precision."""
    _set_weight(work, float("inf"))


@fault(
    "use",
    "one weight of the checkpoint is NaN",
    rows=(72,),
    step="mapping",
    place="not a finite number.*up_proj",
    status=NOT_VERIFIED,
    quick=STATIC,
)
def nan_weight(work: Work) -> None:
    """All logits would be."""
    _set_weight(work, float("nan"))


@fault(
    "use",
    "a tensor stands in two shards, once stale",
    rows=(76,),
    step="mapping",
    place="is in two files",
    status=NOT_VERIFIED,
    quick=STATIC,
)
def stale_copy(work: Work) -> None:
    """Loaders take either one."""
    from safetensors.torch import save_file

    path, tensors, name = _weights(work)
    save_file(tensors, path.with_name("a.safetensors"), {"format": "pt"})
    save_file({name: tensors[name] / 2}, path.with_name("b.safetensors"), {"format": "pt"})  # type: ignore[operator]
    path.unlink()
    index = dict.fromkeys(tensors, "a.safetensors") | {name: "b.safetensors"}
    path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@fault(
    "use",
    "config.json has a quantization_config that was left over",
    step="mapping",
    place="quantization_config",
    status=NOT_VERIFIED,
    quick=STATIC,
)
def leftover_quantization(work: Work) -> None:
    """transformers would quantize the weights again."""
    path = work.own_model() / "config.json"
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


FAULTS: tuple[Fault, ...] = (
    no_context_length,
    no_special_tokens,
    one_end_of_two,
    infinite_weight,
    nan_weight,
    stale_copy,
    leftover_quantization,
)
