"""Which EValues of the text decoder are its KV-caches: layer, keys or values, and the axis of positions.

A cache is what a call reads before it writes it. Keys are roped: walking back from what is written, a RoPE table (a constant)
is met before a linear; on the way to values it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifier.artifact.lifetimes import lifetimes
from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.errors import ArtifactError

_WRITES = {"llama::update_cache.out": (1, 0), "aten::index_put.out": (0, 2)}
"""Kernels that write rows: the place of the cache and of the rows among their arguments."""


@dataclass(frozen=True)
class Cache:
    """One cache of the decoder: number of its EValue, layer, `axis` of positions in its `sizes`."""

    value: int
    layer: int
    kind: Literal["k", "v"]
    axis: int
    sizes: tuple[int, ...]
    size_bytes: int


def find_caches(artifact: Artifact) -> tuple[Cache, ...]:
    """All caches of `text_decoder` in the order of their writing. Raises `ArtifactError` if they are none that LLaVA has."""
    plan = artifact.plans["text_decoder"]
    kept = {one.value for one in lifetimes(plan) if one.permanent}
    found: list[Cache] = []
    for step in plan.instructions:
        at = _WRITES.get(step.name)
        if at is None or step.args[at[0]] not in kept:
            continue
        index = step.args[at[0]]
        value = plan.values[index]
        assert isinstance(value, TensorValue)
        if len(value.sizes) != 4 or value.dtype != "FLOAT":
            raise _odd("a cache that is not fp32 [1, T, H, D] or [1, H, T, D]", f"{value.dtype} {list(value.sizes)}")
        axis = _axis(step)
        kind: Literal["k", "v"] = "k" if _meets_table(artifact, plan, step, step.args[at[1]]) else "v"
        layer = sum(cache.kind == kind for cache in found)
        found.append(Cache(index, layer, kind, axis, value.sizes, value.size_bytes))
    kinds = [sum(cache.kind == kind for cache in found) for kind in "kv"]
    if not found or kinds[0] != kinds[1] or {cache.value for cache in found} != kept:
        raise _odd(
            "one K and one V cache for each layer",
            f"{kinds[0]} K, {kinds[1]} V, {len(kept)} tensors that outlive a call",
        )
    return tuple(found)


def cache_length(artifact: Artifact) -> int | None:
    """Positions that the shortest cache of `text_decoder` holds, None if no cache is written in a way that is known."""
    plan = artifact.plans["text_decoder"]
    written = [
        (step, plan.values[step.args[_WRITES[step.name][0]]]) for step in plan.instructions if step.name in _WRITES
    ]
    lengths = [
        value.sizes[_axis(step)] for step, value in written if isinstance(value, TensorValue) and len(value.sizes) == 4
    ]
    return min(lengths, default=None)


def _axis(write: Instruction) -> int:
    """The axis of positions of the cache that an instruction writes."""
    return 1 if write.name.startswith("llama") else 2


def _odd(expected: str, got: str) -> ArtifactError:
    return ArtifactError(
        "the text decoder's KV-cache is not as LLaVA has it",
        got=got,
        expected=expected,
        where="text_decoder",
        fix="export again; for another attention, teach verifier/artifact/caches.py its layout",
    )


def _meets_table(artifact: Artifact, plan: Plan, write: Instruction, rows: int) -> bool:
    makers = {index: step for step in plan.instructions[: write.index] for index in artifact.results(plan, step)}
    waiting, seen = [rows], set()
    while waiting:
        index = waiting.pop()
        value = plan.values[index]
        if isinstance(value, ListValue):
            waiting += [item for item in value.items if value.boxed and item >= 0]
        if not isinstance(value, TensorValue) or index in seen:
            continue
        seen.add(index)
        if value.constant is not None and len(value.sizes) > 1:
            return True
        step = makers.get(index)
        if step is not None:
            waiting += _sources(artifact, plan, step, index)
    return False


def _sources(artifact: Artifact, plan: Plan, step: Instruction, result: int) -> set[int]:
    """EValues that a result of an instruction depends on; nothing behind a linear. Inside a delegate node by node."""
    if step.kind != "delegate":
        return set(step.args) - set(artifact.results(plan, step))
    graph = artifact.graph(plan, step)
    makers = {node.output: node for node in graph.nodes}
    taken, made = artifact.given_and_made(plan, step)
    given = dict(zip(graph.inputs, taken, strict=True))
    waiting = [graph.outputs[made.index(result)]]
    found: set[int] = set()
    while waiting:
        id = waiting.pop()
        if id in given:
            found.add(given[id])
        elif id in makers:
            if makers[id].kind == "XNNFullyConnected":
                return set()
            waiting += [source for source in makers.pop(id).inputs if source is not None]
    return found
