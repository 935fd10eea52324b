"""Which EValues of the text decoder are its KV-caches: layer, keys or values, and the axis of positions.

A cache is what a call reads before it writes it. Keys are roped: walking back from what is written, a RoPE table (a constant)
is met before a linear; on the way to values it is not.
"""

from __future__ import annotations

from typing import Literal

from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue
from verifier.artifact.program import Artifact
from verifier.audit.lifetimes import lifetimes
from verifier.audit.records import Cache
from verifier.backends.calls import BACKENDS, given_and_made, graph_of, results_of
from verifier.core.errors import ArtifactError
from verifier.families.conventions import DECODER
from verifier.operators.operator import RowWrite
from verifier.operators.registry import OPERATORS


def find_caches(artifact: Artifact) -> tuple[Cache, ...]:
    """All caches of `text_decoder` in the order of their writing. Raises `ArtifactError` if they are none that LLaVA has."""
    plan = artifact.plans[DECODER]
    kept = {one.value for one in lifetimes(plan) if one.permanent}
    found: list[Cache] = []
    for step in plan.instructions:
        write = _write(step)
        if write is None or step.args[write.cache] not in kept:
            continue
        index = step.args[write.cache]
        value = plan.values[index]
        assert isinstance(value, TensorValue)
        if len(value.sizes) != 4 or value.dtype != "FLOAT":
            raise _odd("a cache that is not fp32 [1, T, H, D] or [1, H, T, D]", f"{value.dtype} {list(value.sizes)}")
        kind: Literal["k", "v"] = "k" if _meets_table(artifact, plan, step, step.args[write.rows]) else "v"
        layer = sum(cache.kind == kind for cache in found)
        found.append(Cache(index, layer, kind, write.axis, value.sizes, value.size_bytes))
    kinds = [sum(cache.kind == kind for cache in found) for kind in "kv"]
    if not found or kinds[0] != kinds[1] or {cache.value for cache in found} != kept:
        raise _odd(
            "one K and one V cache for each layer",
            f"{kinds[0]} K, {kinds[1]} V, {len(kept)} tensors that outlive a call",
        )
    return tuple(found)


def cache_length(artifact: Artifact) -> int | None:
    """Positions that the shortest cache of `text_decoder` holds, None if no cache is written in a way that is known."""
    plan = artifact.plans[DECODER]
    lengths = []
    for step in plan.instructions:
        write = _write(step)
        value = None if write is None else plan.values[step.args[write.cache]]
        if write is not None and isinstance(value, TensorValue) and len(value.sizes) == 4:
            lengths.append(value.sizes[write.axis])
    return min(lengths, default=None)


def _write(step: Instruction) -> RowWrite | None:
    """How an instruction writes rows of a cache, if it does."""
    operator = OPERATORS.find(step.name) if step.kind == "kernel" else None
    return None if operator is None else operator.rows


def _odd(expected: str, got: str) -> ArtifactError:
    return ArtifactError(
        "the layout of the text decoder's KV-cache is not known",
        got=got,
        expected=expected,
        where=DECODER,
        fix="export again; for another attention, add the layout of its cache to the record of its operator in verifier/operators/",
    )


def _meets_table(artifact: Artifact, plan: Plan, write: Instruction, rows: int) -> bool:
    makers = {index: step for step in plan.instructions[: write.index] for index in results_of(artifact, plan, step)}
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
        return set(step.args) - set(results_of(artifact, plan, step))
    graph = graph_of(artifact, plan, step)
    backend = BACKENDS.get(step.name, where=f"{plan.name}, instruction {step.index}")
    makers = {node.output: node for node in graph.nodes}
    taken, made = given_and_made(artifact, plan, step)
    given = dict(zip(graph.inputs, taken, strict=True))
    waiting = [graph.outputs[made.index(result)]]
    found: set[int] = set()
    while waiting:
        id = waiting.pop()
        if id in given:
            found.add(given[id])
        elif id in makers:
            if backend.is_linear(makers[id]):
                return set()
            waiting += [source for source in makers.pop(id).inputs if source is not None]
    return found
