"""A delegate's operands and results are found by the numbers that its graph gives its external values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from verifier.artifact.plan import Instruction
from verifier.artifact.program import Artifact, open_artifact
from verifier.backends.calls import given_and_made, graph_of, results_of
from verifier.core.errors import ArtifactError


def _linear(pte: Path) -> tuple[Artifact, Instruction]:
    """The embedded program and its decoder's first delegate with one input and one output."""
    artifact = open_artifact(pte)
    plan = artifact.plans["text_decoder"]
    calls = (step for step in plan.instructions if step.kind == "delegate")
    return artifact, next(s for s in calls if len(graph_of(artifact, plan, s).inputs) == 1 and len(s.args) == 2)


def _with_output_at(artifact: Artifact, step: Instruction, place: int) -> None:
    """Let the graph of a call have its output at another place among the arguments."""
    plan = artifact.plans["text_decoder"]
    graph = graph_of(artifact, plan, step)
    made = graph.outputs[0]
    values = graph.values | {made: replace(graph.values[made], external=place)}
    assert step.delegate is not None
    artifact.decoded[plan.delegates[step.delegate].payload] = replace(graph, values=values)


def test_arguments_that_a_delegate_does_not_read_are_no_results(embedded_pte: Path) -> None:
    """Scales and a zero point between input and output, as a partitioner that does not tag them leaves them."""
    artifact, step = _linear(embedded_pte)
    plan, (given, made) = artifact.plans["text_decoder"], step.args
    assert given_and_made(artifact, plan, step) == ((given,), (made,))
    _with_output_at(artifact, step, 4)
    longer = replace(step, args=(given, 7, 8, 9, made))
    assert given_and_made(artifact, plan, longer) == ((given,), (made,))
    assert results_of(artifact, plan, longer) == (made,)


@pytest.mark.parametrize("place", [2, 1 << 31, -1])
def test_argument_that_is_not_there_is_refused(embedded_pte: Path, place: int) -> None:
    """A graph of an untrusted file names a place behind the call's arguments, or before them."""
    artifact, step = _linear(embedded_pte)
    _with_output_at(artifact, step, place)
    with pytest.raises(ArtifactError, match="arguments that its call does not have"):
        given_and_made(artifact, artifact.plans["text_decoder"], step)
