"""Calls in messages: what an instruction and a node are given and give, with dtypes and sizes."""

from __future__ import annotations

import torch

from tests.support import EMBEDDED_PTE
from verifier.artifact.program import open_artifact
from verifier.interpret.machine import Machine
from verifier.ladder.call_text import instruction_text, node_text, tensor_text


def test_tensors_by_dtype_and_sizes() -> None:
    """A scalar has no sizes."""
    made = (torch.zeros(1, 17), torch.zeros(2, dtype=torch.int8), torch.zeros((), dtype=torch.bool))
    assert [tensor_text(x) for x in made] == ["f32[1,17]", "s8[2]", "bool[]"]


def test_a_linear_inside_a_delegate_names_its_group() -> None:
    """Dynamic int8 rows times 4-bit groups, of the first delegate of the decoder that has one."""
    state = Machine(open_artifact(EMBEDDED_PTE)).methods["text_decoder"]
    delegates = [step for step in state.plan.instructions if step.kind == "delegate"]
    step, graph, node = next(
        (step, graph, node)
        for step in delegates
        for graph in (state.graph(step),)
        for node in graph.nodes
        if node.kind == "XNNFullyConnected"
    )
    text = node_text(graph, node, torch.zeros(1, 5, 256))
    assert text.startswith("XNNFullyConnected(qd8[1,")
    assert ", qb4w[256,256] g64" in text and text.endswith(" -> f32[1,5,256]")
    longest = max(delegates, key=lambda one: len(state.graph(one).nodes))
    count = len(state.graph(longest).nodes)
    text = instruction_text(state, longest, [], torch.zeros(1))
    assert count > 5 and text.startswith(f"{count} nodes ") and f"…+{state.graph(longest).nodes[-1].short}()" in text
    whole = instruction_text(state, step, [torch.zeros(1, 5, 256), 7, None], torch.zeros(1, 5, 256))
    assert "FullyConnected" in whole and whole.endswith("(f32[1,5,256]) -> f32[1,5,256]")
