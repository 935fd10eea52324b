"""Modules filled from a checkpoint, tensor by tensor, and a decoder that reads a layer when it is called: fp32 of a 7B model is 26 GB.

Modules stay what they are; hooks fill a layer before it, or one of its parts, is called, and empty the layer that was filled before.
Whoever goes through the layers once for all sequences reads each of them once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifier.core.errors import CheckpointError
from verifier.core.system import return_freed
from verifier.families.checkpoint import Checkpoint
from verifier.families.shards import Stored

ParameterHook = Callable[[nn.Module, str], None]
"""Is told a module that was filled, and its name."""
_FLOATING = ("F", "BF")
"""How safetensors begins the names of such dtypes."""
STREAMED_BYTES = 2 << 30
"""Weight files of at least this size are streamed."""


def load_parameters(
    module: nn.Module,
    mapping: dict[str, str],
    checkpoint: Checkpoint,
    *,
    on_module: ParameterHook | None = None,
    into: dict[str, Tensor] | None = None,
) -> None:
    """Fill a module from a checkpoint in fp32, one submodule at a time. `on_module` sees each one as soon as it is whole. `into` keeps the
    memory of each parameter for the next module that is filled with it.

    Every parameter must be mapped and every shape must fit: raises `CheckpointError` otherwise.
    """
    wanted = dict(module.named_parameters())
    if set(wanted) != set(mapping):
        odd = sorted(set(wanted) ^ set(mapping))
        raise CheckpointError("the key map does not fit the model", got=odd[:4], expected="one key for each parameter")
    owners: dict[str, list[str]] = {}
    for name in wanted:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    for owner_name, names in owners.items():
        owner = module.get_submodule(owner_name)
        for name in names:
            tensor = checkpoint.tensor(mapping[name])
            check_stored(name, mapping[name], checkpoint.stored(mapping[name]), tuple(wanted[name].shape))
            if into is None:
                held = tensor.to(torch.float32)
            else:
                held = into.setdefault(name, torch.empty(0)).resize_(tensor.shape).copy_(tensor)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(held, requires_grad=False))
        if on_module is not None:
            on_module(owner, owner_name)


def check_stored(name: str, key: str, stored: Stored, expected: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless the tensor of a file has the shape of a parameter, and floating-point numbers."""
    # Hugging Face keeps CLIP's class embedding as [D]; very old exports as [1, D].
    if stored.shape != expected:
        raise CheckpointError(
            f"tensor {key} has the wrong shape",
            got=list(stored.shape),
            expected=f"{list(expected)} for {name}",
            fix="check that config.json belongs to these weights",
        )
    if not stored.dtype.startswith(_FLOATING):
        raise CheckpointError(f"tensor {key} has the wrong dtype", got=stored.dtype, expected="a floating-point dtype")


class _Stream:
    """Which layer is filled. `shapes` are those of all parameters of a layer, alike in every one."""

    def __init__(self, decoder: Any, mapping: dict[str, str], checkpoint: Checkpoint, on_module: ParameterHook | None):
        self.decoder, self.mapping, self.checkpoint, self.on_module = decoder, mapping, checkpoint, on_module
        self.shapes = {name: parameter.shape for name, parameter in decoder.layers[0].named_parameters()}
        self.filled: int | None = None
        self.memory: dict[
            str, torch.Tensor
        ] = {}  # given back and taken again, 800 MB a layer would cost more than the arithmetic

    def fill(self, number: int) -> None:
        if self.filled == number:
            return
        self._empty()
        return_freed()
        prefix = f"layers.{number}."
        own = {name.removeprefix(prefix): key for name, key in self.mapping.items() if name.startswith(prefix)}
        seen = self.on_module and partial(_named, self.on_module, f"layers.{number}")
        load_parameters(self.decoder.layers[number], own, self.checkpoint, on_module=seen, into=self.memory)
        self.filled = number

    def unload(self) -> None:
        self._empty()
        self.memory.clear()
        return_freed()

    def _empty(self) -> None:
        if self.filled is None:
            return
        layer, self.filled = self.decoder.layers[self.filled], None
        for name, shape in self.shapes.items():
            owner, _, attribute = name.rpartition(".")
            empty = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
            setattr(layer.get_submodule(owner), attribute, empty)


def stream_layers(
    decoder: Any, mapping: dict[str, str], checkpoint: Checkpoint, *, on_module: ParameterHook | None = None
) -> None:
    """Fill everything but the layers now, and each layer when it, or a part of it, is called.

    `mapping` maps parameters to keys of the checkpoint. `on_module` sees each module as soon as it is whole, every time anew.
    Raises `CheckpointError`, also in later calls.
    """
    others = {name: key for name, key in mapping.items() if not name.startswith("layers.")}
    for top in {name.partition(".")[0] for name in others}:
        own = {n.partition(".")[2]: key for n, key in others.items() if n.partition(".")[0] == top}
        load_parameters(getattr(decoder, top), own, checkpoint, on_module=on_module and partial(_named, on_module, top))
    stream = _Stream(decoder, mapping, checkpoint, on_module)
    decoder.unload_layers = stream.unload
    for number, layer in enumerate(decoder.layers):
        for module in (layer, *layer.children()):
            module.register_forward_pre_hook(partial(_fill, stream, number))


def unload_layers(decoder: Any) -> None:
    """Give back the memory of a streamed layer, until one is called again; nothing, if layers are not streamed."""
    if hasattr(decoder, "unload_layers"):
        decoder.unload_layers()


def _fill(stream: _Stream, number: int, _module: nn.Module, _inputs: object) -> None:
    stream.fill(number)


def _named(on_module: ParameterHook, top: str, module: nn.Module, name: str) -> None:
    on_module(module, f"{top}.{name}" if name else top)


def is_large(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's layers are streamed: its weight files hold `STREAMED_BYTES` or more."""
    return sum(path.stat().st_size for path in checkpoint.shards) >= STREAMED_BYTES
