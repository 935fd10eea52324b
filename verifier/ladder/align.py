"""Which module of the model an instruction belongs to: by the weights it uses, and by the dataflow around it.

Names of the exporter may be stripped from a file, so none is read. An instruction that uses a weight has that weight's
module. One that uses none belongs to the block of the latest weight its operands come from; a mean or a conversion that only
feeds a norm belongs to the norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from verifier.artifact.plan import Instruction
from verifier.audit.run import Audit
from verifier.backends.calls import written_by
from verifier.families.conventions import EMBEDDING, ROLES, module_of
from verifier.families.family import Family
from verifier.interpret.machine import Machine, MethodState
from verifier.ladder.records import Aligned
from verifier.operators.registry import OPERATORS


def align_program(machine: Machine, audit: Audit) -> dict[tuple[str, int], Aligned]:
    """Module and block of every instruction of all methods that compute."""
    family = audit.source.family
    held: dict[tuple[str, int], list[str]] = {}
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is not None:
            held.setdefault((constant.method, constant.instruction), []).append(parameter.name)
    found: dict[tuple[str, int], Aligned] = {}
    for method in ROLES:
        named = {instruction: names for (owner, instruction), names in held.items() if owner == method}
        aligned = _align_method(machine.methods[method], named, family)
        found |= {(method, index): replace(one, block=family.block_of(one.block)) for index, one in aligned.items()}
    return found


def _align_method(state: MethodState, named: dict[int, list[str]], family: Family) -> dict[int, Aligned]:
    makers: dict[int, int] = {}
    users: dict[int, list[int]] = {}
    latest: dict[int, int | None] = {}
    for step in state.plan.instructions:
        sources = {makers[index] for index in state.with_sources(state.operands(step)) if index in makers}
        for source in sources:
            users.setdefault(source, []).append(step.index)
        origins = [step.index] if step.index in named else [o for s in sources if (o := latest[s]) is not None]
        latest[step.index] = max(origins) if origins else None
        makers |= dict.fromkeys(state.results(step), step.index)
        written = written_by(step)
        if written is not None:  # a cache is written in place: its readers come after
            makers[written] = step.index
    return {step.index: _label(state, step, _Flow(named, users, latest), family) for step in state.plan.instructions}


@dataclass(frozen=True)
class _Flow:
    """Of each instruction: the parameters that it uses, the instructions that use its results, and the latest one with parameters that its
    operands come from."""

    named: dict[int, list[str]]
    users: dict[int, list[int]]
    latest: dict[int, int | None]


def _label(state: MethodState, step: Instruction, flow: _Flow, family: Family) -> Aligned:
    method, named = state.plan.name, flow.named
    if step.index in named:
        return Aligned(_module(named[step.index]), family.part_of(named[step.index][0]))
    following, operator = flow.users.get(step.index, []), OPERATORS.find(step.name)
    if operator is not None and operator.statistic and len(following) == 1 and following[0] in named:
        return Aligned(_module(named[following[0]]), family.part_of(named[following[0]][0]))
    origin = flow.latest[step.index]
    if origin is None:
        block = method if method == EMBEDDING else f"{method}.input"
        return Aligned(block, block)
    block = family.part_of(named[origin][-1])
    return Aligned(f"{block}.{operator.part}" if operator is not None and operator.part else block, block)


def _module(parameters: Iterable[str]) -> str:
    """The module of the weights of one instruction: theirs if it is one, else from the first to the last."""
    modules = list(dict.fromkeys(module_of(name) for name in parameters))
    return modules[0] if len(modules) == 1 else f"{modules[0]} to {modules[-1].partition('.')[2]}"
