"""What the instructions of a program read and make, delegates among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from verifier.artifact.plan import Instruction, ListValue, Plan, TensorValue
from verifier.artifact.program import Artifact, MethodFacts
from verifier.backends.backend import Backend, Graph, Opaque
from verifier.backends.xnnpack.run import Xnnpack
from verifier.core.errors import ArtifactError
from verifier.operators.operator import Registry, UnknownOperationError
from verifier.operators.registry import OPERATORS

BACKENDS: Registry[Backend] = Registry("delegate", "verifier/backends/", (Xnnpack(),))


def delegate_of(artifact: Artifact, plan: Plan, step: Instruction) -> Graph | Opaque:
    """The delegate that an instruction calls; decoded once. Raises `ArtifactError` for a damaged one."""
    assert step.delegate is not None
    payload = plan.delegates[step.delegate].payload
    if payload not in artifact.decoded:
        backend, where = BACKENDS.find(step.name), f"{plan.name}, instruction {step.index}"
        artifact.decoded[payload] = (
            Opaque(BACKENDS.refusal(step.name))
            if backend is None
            else backend.read(payload, artifact.storage, where=where)
        )
    found = artifact.decoded[payload]
    assert isinstance(found, Graph | Opaque)
    return found


def graph_of(artifact: Artifact, plan: Plan, step: Instruction) -> Graph:
    """The graph of the delegate that an instruction calls. Raises `UnknownOperationError` for one that nobody can read, and `ArtifactError`."""
    found = delegate_of(artifact, plan, step)
    if isinstance(found, Opaque):
        raise UnknownOperationError(found.reason, where=f"{plan.name}, instruction {step.index}")
    return found


def given_and_made(artifact: Artifact, plan: Plan, step: Instruction) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the EValues that a delegate reads and writes, in the order of its graph's inputs and outputs. Raises like `graph_of`.

    The graph names its external values by their place among the arguments of the call (XNNExecutor::prepare_args). A call may have
    more arguments than that: scales and zero points that went into the delegate are left in the call where a partitioner did not
    tag them.
    """
    graph = graph_of(artifact, plan, step)
    places = [graph.values[id].external for id in (*graph.inputs, *graph.outputs)]
    if any(place is None or not 0 <= place < len(step.args) for place in places):
        raise ArtifactError(
            "a delegate names arguments that its call does not have",
            got=f"external values {places} of a call with {len(step.args)} arguments",
            where=f"{plan.name}, instruction {step.index}",
        )
    found = tuple(step.args[place] for place in places if place is not None)
    return found[: len(graph.inputs)], found[len(graph.inputs) :]


def results_of(artifact: Artifact, plan: Plan, step: Instruction) -> tuple[int, ...]:
    """Numbers of the EValues that an instruction makes, in order. Raises like `graph_of`."""
    if step.kind == "delegate":
        return given_and_made(artifact, plan, step)[1]
    if step.kind == "move":
        return (step.args[1],)
    if step.kind != "kernel":
        return ()
    last = plan.values[step.args[-1]]  # the return value, which repeats the output or lists the outputs
    return tuple(last.items) if isinstance(last, ListValue) else (step.args[-1],)


def operands_of(artifact: Artifact, plan: Plan, step: Instruction) -> tuple[int, ...]:
    """Numbers of the EValues that an instruction reads, lists included by their items; also what it writes in place. Raises like `graph_of`."""
    if step.kind == "delegate":
        return given_and_made(artifact, plan, step)[0]
    if step.kind != "kernel":
        return step.args[:1]
    results, operator = set(results_of(artifact, plan, step)), OPERATORS.find(step.name)
    found: list[int] = []
    for place, index in enumerate(step.args):
        value = plan.values[index]
        if index in results and (operator is None or place != operator.writes):
            continue
        if isinstance(value, ListValue) and value.boxed:
            found += [] if results & set(value.items) else [item for item in value.items if item != -1]
        else:
            found.append(index)
    return tuple(found)


def written_by(step: Instruction) -> int | None:
    """Number of the EValue that an instruction writes in place, None if there is none."""
    operator = OPERATORS.find(step.name) if step.kind == "kernel" else None
    return None if operator is None or operator.writes is None else step.args[operator.writes]


def is_view(step: Instruction) -> bool:
    """Whether an instruction only gives memory another shape: no kernel runs, and nothing is traced."""
    operator = OPERATORS.find(step.name) if step.kind == "kernel" else None
    return operator is not None and operator.views


Indices = Callable[[Instruction], Iterable[int]]
"""Numbers of some EValues of an instruction."""


def elided_views(plan: Plan, reads: Indices, writes: Indices) -> dict[int, int]:
    """EValues that are another one in another shape, by number: ExecuTorch leaves out a view whose shape is static, and plans it where its source
    lies. Nothing writes such an EValue, and what stands in its memory was written as another one of as many bytes.

    A cache is written, if in place, so it is none. Source: `_emit_view` of executorch/exir/emit/_emitter.py, release 1.5.
    """
    written = {index for step in plan.instructions for index in writes(step)}
    latest = {place: index for index in plan.inputs if (place := _place(plan, index)) is not None}
    found: dict[int, int] = {}

    def note(index: int) -> None:
        place = _place(plan, index)
        if place is not None and index not in written and index not in plan.inputs:
            source = latest.get(place)
            if source is not None and _alike(plan, index, source):
                found.setdefault(index, source)

    for step in plan.instructions:
        for index in reads(step):
            note(index)
        latest |= {place: index for index in writes(step) if (place := _place(plan, index)) is not None}
    for index in plan.outputs:
        note(index)
    return found


def _place(plan: Plan, index: int) -> tuple[int, int] | None:
    value = plan.values[index]
    return value.place if isinstance(value, TensorValue) and value.constant is None else None


def _alike(plan: Plan, one: int, two: int) -> bool:
    first, second = plan.values[one], plan.values[two]
    assert isinstance(first, TensorValue) and isinstance(second, TensorValue)
    return (first.dtype, first.size_bytes, first.dynamic) == (second.dtype, second.size_bytes, second.dynamic)


def census_of(artifact: Artifact) -> dict[str, dict[str, int]]:
    """Instructions per method: kernel names, `delegate:BACKEND` and the nodes inside delegates that can be read, sorted; metadata methods
    left out. Raises `ArtifactError` for a damaged delegate."""
    return {
        name: dict(sorted((facts.operators | _delegates(facts) | _nodes(artifact, artifact.plans[name])).items()))
        for name, facts in sorted(artifact.methods.items())
        if facts.constant is None
    }


def _delegates(facts: MethodFacts) -> dict[str, int]:
    return {f"delegate:{backend}": count for backend, count in facts.delegates.items()}


def _nodes(artifact: Artifact, plan: Plan) -> dict[str, int]:
    graphs = [delegate_of(artifact, plan, step) for step in plan.instructions if step.kind == "delegate"]
    nodes = [node for graph in graphs if isinstance(graph, Graph) for node in graph.nodes]
    return dict(Counter(f"{node.kind}{' clamped' if node.clamps else ''}" for node in nodes))
