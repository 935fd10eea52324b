"""Which module of the model an instruction belongs to: by the weights it uses, and by the dataflow around it.

Names of the exporter may be stripped from a file, so none is read. An instruction that uses a weight has that weight's
module. One that uses none belongs to the block of the latest weight its operands come from; a mean or a conversion that only
feeds a norm belongs to the norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from verifier.artifact.plan import Instruction
from verifier.artifact.program import METHODS
from verifier.audit.run import Audit
from verifier.backends.calls import written_by
from verifier.interpret.machine import Machine, MethodState
from verifier.model.geometry import Geometry
from verifier.model.keymap import module_of
from verifier.operators.registry import OPERATORS


@dataclass(frozen=True)
class Aligned:
    """An instruction's module, such as `text_decoder.layers.3.attention.wq`, and the block that it is judged with."""

    module: str
    block: str


def list_blocks(geometry: Geometry) -> tuple[str, ...]:
    """Blocks of the model in the order of the computation: the cases of the checks layer by layer."""
    # the projector is lowered into one delegate with the last layer's second half, and is judged with that layer
    vision = ["input", *(f"layers.{i}" for i in range(geometry.vision.layers_used))]
    text = [f"layers.{i}.{part}" for i in range(geometry.text.layers) for part in ("attention", "feed_forward")]
    return (
        *(f"vision_encoder.{name}" for name in vision),
        "token_embedding",
        "text_decoder.input",
        *(f"text_decoder.{name}" for name in text),
        "text_decoder.output",
    )


def block_of(parameter: str) -> str:
    """The block of a parameter: `text_decoder.layers.0.ffn_norm.weight` -> `text_decoder.layers.0.feed_forward`."""
    method, _, rest = parameter.partition(".")
    if method == "token_embedding":
        return method
    layer = re.search(r"layers\.\d+", rest)
    if method == "vision_encoder":
        return f"{method}.{layer[0] if layer else 'projector' if rest.startswith('projector') else 'input'}"
    if layer is None:
        return f"{method}.output"
    return f"{method}.{layer[0]}.{'feed_forward' if 'feed_forward' in rest or 'ffn_norm' in rest else 'attention'}"


def align_program(machine: Machine, audit: Audit, geometry: Geometry) -> dict[tuple[str, int], Aligned]:
    """Module and block of every instruction of the three methods."""
    held: dict[tuple[str, int], list[str]] = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is not None:
            held.setdefault((constant.method, constant.instruction), []).append(parameter.name)
    found: dict[tuple[str, int], Aligned] = {}
    for method in METHODS:
        named = {instruction: names for (owner, instruction), names in held.items() if owner == method}
        found |= {(method, index): aligned for index, aligned in _align_method(machine.methods[method], named).items()}
    last = f"vision_encoder.layers.{geometry.vision.layers_used - 1}"
    for place, aligned in found.items():
        if aligned.block == "vision_encoder.projector":
            found[place] = Aligned(aligned.module, last)
    return found


def _align_method(state: MethodState, named: dict[int, list[str]]) -> dict[int, Aligned]:
    makers: dict[int, int] = {}
    users: dict[int, list[int]] = {}
    latest: dict[int, int | None] = {}
    for step in state.plan.instructions:
        sources = {makers[index] for index in state.operands(step) if index in makers}
        for source in sources:
            users.setdefault(source, []).append(step.index)
        origins = [step.index] if step.index in named else [o for s in sources if (o := latest[s]) is not None]
        latest[step.index] = max(origins) if origins else None
        makers |= dict.fromkeys(state.results(step), step.index)
        written = written_by(step)
        if written is not None:  # a cache is written in place: its readers come after
            makers[written] = step.index
    return {step.index: _label(state, step, named, users, latest) for step in state.plan.instructions}


def _label(
    state: MethodState,
    step: Instruction,
    named: dict[int, list[str]],
    users: dict[int, list[int]],
    latest: dict[int, int | None],
) -> Aligned:
    method = state.plan.name
    if step.index in named:
        return Aligned(_module(named[step.index]), block_of(named[step.index][0]))
    following, operator = users.get(step.index, []), OPERATORS.find(step.name)
    if operator is not None and operator.statistic and len(following) == 1 and following[0] in named:
        return Aligned(_module(named[following[0]]), block_of(named[following[0]][0]))
    origin = latest[step.index]
    if origin is None:
        block = method if method == "token_embedding" else f"{method}.input"
        return Aligned(block, block)
    block = block_of(named[origin][-1])
    return Aligned(f"{block}.{operator.part}" if operator is not None and operator.part else block, block)


def _module(parameters: Iterable[str]) -> str:
    """The module of the weights of one instruction: theirs if it is one, else from the first to the last."""
    modules = list(dict.fromkeys(module_of(name) for name in parameters))
    return modules[0] if len(modules) == 1 else f"{modules[0]} to {modules[-1].partition('.')[2]}"
