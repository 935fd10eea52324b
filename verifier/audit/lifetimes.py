"""The memory plan: which tensors share bytes, and whether they ever live at the same time.

A tensor lives from the instruction that makes it to the last that reads it; a cache, which is read before anything in the
call has written it, lives always, and so does a method's output from when it is made; an input lives until it was read for
the last time. Two that live at once must not share
a byte of an arena; a view shares its source's memory by design. Issue ET#12182 was a cache whose lifetime ended early.
"""

from __future__ import annotations

from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue
from verifier.audit.records import Lifetime, Overlap
from verifier.backends.calls import elided_views, is_view, written_by


def lifetimes(plan: Plan) -> list[Lifetime]:
    """Lifetimes of all planned tensors of a method; views count as uses of what they look at."""
    end = len(plan.instructions)
    sources = {step.args[-1]: step.args[0] for step in plan.instructions if is_view(step)}
    sources |= elided_views(plan, lambda step: _tensors(plan, step), lambda step: _every_written(plan, step))
    made: dict[int, int] = {}
    used: dict[int, list[int]] = {}
    for step in plan.instructions:
        for index in _tensors(plan, step):
            origin = _origin(index, sources)
            used.setdefault(origin, []).append(step.index)
        for index in _written(plan, step):
            made.setdefault(_origin(index, sources), step.index)
    found = []
    for index in sorted(used):
        value = plan.values[index]
        if not isinstance(value, TensorValue) or value.place is None:
            continue
        given = index in plan.inputs
        permanent = (index not in made and not given) or index in _mutated(plan)
        result = any(_origin(output, sources) == index for output in plan.outputs)
        first = -1 if permanent or given else made[index]
        last = end if permanent or result else max(used[index])
        arena, begin = value.place
        found.append(Lifetime(index, arena, begin, begin + value.size_bytes, first, last, permanent))
    return found


def find_overlaps(plan: Plan) -> list[Overlap]:
    """All pairs that share memory while both live, by sweeping each arena from its beginning."""
    found = []
    ordered = sorted(lifetimes(plan), key=lambda one: (one.arena, one.begin))
    open_ones: list[Lifetime] = []
    for one in ordered:
        open_ones = [other for other in open_ones if other.arena == one.arena and other.end > one.begin]
        found += [Overlap(plan.name, other, one) for other in open_ones if other.conflicts(one)]
        open_ones.append(one)
    return found


def outside_arena(plan: Plan) -> list[Lifetime]:
    """Tensors that end outside the arena that the plan sets aside for them."""
    sizes = plan.arenas_bytes
    return [one for one in lifetimes(plan) if not 0 < one.arena < len(sizes) or one.end > sizes[one.arena]]


def _origin(index: int, sources: dict[int, int]) -> int:
    while index in sources:
        index = sources[index]
    return index


def _tensors(plan: Plan, step: Instruction) -> list[int]:
    found = []
    for index in step.args:
        value = plan.values[index]
        listed = [i for i in value.items if i >= 0] if isinstance(value, ListValue) and value.boxed else []
        found += [i for i in (index, *listed) if isinstance(plan.values[i], TensorValue)]
    return found


def _every_written(plan: Plan, step: Instruction) -> list[int]:
    """What an instruction writes, in place too, and what a view is another shape of."""
    changed = written_by(step)
    return [
        *_written(plan, step),
        *([changed] if changed is not None else []),
        *([step.args[-1]] if is_view(step) else []),
    ]


def _mutated(plan: Plan) -> set[int]:
    return {index for step in plan.instructions if (index := written_by(step)) is not None}


def _written(plan: Plan, step: Instruction) -> list[int]:
    """What an instruction makes: a kernel's last argument; of a delegate, every planned tensor that nothing made before."""
    if step.kind == "delegate":
        return [index for index in step.args if isinstance(plan.values[index], TensorValue)]
    if step.kind != "kernel" or is_view(step):
        return []
    last = plan.values[step.args[-1]]
    return list(last.items) if isinstance(last, ListValue) else [step.args[-1]]
