"""Faults of the runtime, put into its trace: `layers.kernel` and `layers.coverage` must see them (numbers are those of `verifier.faults.rows`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.faults.judging import compare_with_trace, recipe_of, results_of, trace_conversation
from verifier.artifact.header import read_header
from verifier.artifact.program import open_artifact, read_program
from verifier.audit.recipe import quantized_linear
from verifier.backends.xnnpack.graph import read_graph
from verifier.core.types import CheckResult, Recipe
from verifier.families.checkpoint import Checkpoint
from verifier.families.registry import open_family
from verifier.interpret.machine import Machine
from verifier.ladder.evidence import LayerEvidence
from verifier.ladder.gather import Traced
from verifier.ladder.limits import excess
from verifier.ladder.node_by_node import compare_nodes
from verifier.ladder.replay import clipped_share
from verifier.ladder.trace import CallTrace, read_trace
from verifier.measures.evidence import Subjects
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Result


@dataclass(frozen=True)
class Spoilt:
    """A traced tensor as a faulty kernel would have left it."""

    contents: np.ndarray

    def array(self) -> np.ndarray:
        """Its contents."""
        return self.contents


@pytest.fixture(scope="module")
def clean_trace(micro_model: Path, micro: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A short conversation on the clean micro program."""
    return trace_conversation(micro_model / "model.pte", micro_model, micro, tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def clean_layers(micro_model: Path, micro: Checkpoint, clean_trace: Traced) -> LayerEvidence:
    """What the clean trace shows."""
    return compare_with_trace(micro_model / "model.pte", micro_model, micro, clean_trace)


Fault = Callable[[list[CallTrace]], None]


@pytest.fixture
def layers_with(
    monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> Callable[[Fault], LayerEvidence]:
    """The evidence from the clean trace, spoilt in place by a fault."""

    def spoil(fault: Fault) -> LayerEvidence:
        traces = read_trace(clean_trace.folders[0])
        fault(traces)
        monkeypatch.setattr("verifier.ladder.gather.read_trace", lambda _folder: traces)
        return compare_with_trace(micro_model / "model.pte", micro_model, micro, clean_trace)

    return spoil


@pytest.fixture
def kernel_failures(
    layers_with: Callable[[Fault], LayerEvidence], micro: Checkpoint
) -> Callable[[Fault], list[CheckResult]]:
    """Results of `layers.kernel` that fail under a fault."""

    def judge(fault: Fault) -> list[CheckResult]:
        subjects = Subjects((), (), open_family(micro).blocks())
        evidence = SimpleNamespace(layers=layers_with(fault), subjects=subjects)
        return [r for r in results_of("layers.kernel", evidence) if r.verdict == "fail"]

    return judge


def _instruction(layers: LayerEvidence, module: str) -> int:
    return next(i for (_, i), aligned in layers.alignment.items() if aligned.module == module)


def test_33_mask_of_the_last_query_row_unset(
    clean_layers: LayerEvidence, kernel_failures: Callable[[Fault], list[CheckResult]]
) -> None:
    """Attention's last row of a chunk sees what it must not: here, the mean of all values."""

    def fault(traces: list[CallTrace]) -> None:
        at = _instruction(clean_layers, "text_decoder.layers.1.attention.sdpa")
        out = traces[2][at][0].array()
        out[:, -1] = out.mean(1)
        traces[2][at] = (Spoilt(out),)  # type: ignore[assignment]

    failed = kernel_failures(fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.1.attention.sdpa")


@pytest.mark.parametrize("kind", ["symmetric", "per tensor", "stride"])
def test_41_42_51_linear_computed_otherwise(
    kind: str,
    micro_model: Path,
    micro: Checkpoint,
    clean_layers: LayerEvidence,
    kernel_failures: Callable[[Fault], list[CheckResult]],
) -> None:
    """Activations quantized symmetrically (41), with one scale for all rows (42); packed weights read with a wrong stride (51)."""

    def fault(traces: list[CallTrace]) -> None:
        at = _instruction(clean_layers, "text_decoder.layers.0.feed_forward.w1")
        x = torch.from_numpy(traces[2][at][0].array()).double()
        weight = micro.tensor("model.language_model.layers.0.mlp.gate_proj.weight")
        made = quantized_linear(weight, recipe_of(micro_model).linears)
        scales = made.scales.reshape(len(weight), -1, 1).double()
        w = (made.integers.double().view(len(weight), scales.shape[1], -1) * scales).view(weight.shape)
        if kind == "stride":
            w, rows = w.roll(1, 0), x
        else:
            peak = x.abs().amax(-1, keepdim=True) if kind == "symmetric" else x.abs().max()
            rows = (x / (peak / 127)).round() * (peak / 127)
        made_out = (rows @ w.T).float().numpy()
        traces[2][at] = (*traces[2][at][:-1], Spoilt(made_out))  # type: ignore[assignment]

    failed = kernel_failures(fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.0.feed_forward.w1")


@pytest.mark.parametrize("kind", ["alpha ignored", "clamp dropped"])
def test_47_48_one_elementwise_operation_wrong(
    kind: str,
    micro_model: Path,
    clean_layers: LayerEvidence,
    kernel_failures: Callable[[Fault], list[CheckResult]],
) -> None:
    """A residual added once too often (as an ignored alpha of 0 would, 47); a result that a clamp should have limited (48)."""

    def fault(traces: list[CallTrace]) -> None:
        plan = open_artifact(micro_model / "model.pte").plans["text_decoder"]
        first = _instruction(clean_layers, "text_decoder.layers.0.feed_forward.w2") + 1
        assert plan.instructions[first].kind == "delegate"
        tensors = list(traces[2][first])
        out = tensors[-2].array()
        tensors[-2] = Spoilt(out + tensors[0].array() if kind == "alpha ignored" else out * np.float32(1.5))  # type: ignore[call-overload]
        traces[2][first] = tuple(tensors)

    failed = kernel_failures(fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.0.feed_forward")


def test_memory_shared_where_it_must_not_be(
    clean_layers: LayerEvidence, layers_with: Callable[[Fault], LayerEvidence]
) -> None:
    """36, 54: the input of a linear changed after the norm wrote it. Its own arithmetic is right, so only the changed operand shows it."""
    assert not clean_layers.replay.changed_operands
    at = _instruction(clean_layers, "text_decoder.layers.1.attention.wv")

    def fault(traces: list[CallTrace]) -> None:
        x = traces[2][at][0].array()
        x[0, 3, :5] += 1
        traces[2][at] = (Spoilt(x), *traces[2][at][1:])  # type: ignore[assignment]

    spoilt = layers_with(fault)
    assert [(h.instruction, h.differing) for h in spoilt.replay.changed_operands] == [(at, 5)]


def test_trace_with_a_hole_is_never_a_pass(
    clean_trace: Traced, clean_layers: LayerEvidence, layers_with: Callable[[Fault], LayerEvidence]
) -> None:
    """An instruction that left no trace in any call is an error of coverage."""
    at = _instruction(clean_layers, "text_decoder.layers.0.attention.wo")

    def fault(traces: list[CallTrace]) -> None:
        for call, trace in zip(clean_trace.calls, traces, strict=True):
            if call.method == "text_decoder":
                trace.pop(at)

    holed = SimpleNamespace(layers=layers_with(fault), subjects=Subjects((), (), ()))
    result = results_of("layers.coverage", holed)[0]
    assert (result.verdict, result.measured["compared"]) == ("error", result.measured["instructions"] - 1)


@dataclass(frozen=True)
class _FaultyRunner:
    """A runtime whose batched matrix product and all that follows it in a delegate is off by a hundredth."""

    name: str = "faulty"
    isa: str = "x86_64"

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Run the cut for real, and spoil what a faulty kernel would have spoilt."""
        result = LocalRunner().run(bundle, timeout_s=timeout_s)
        storage, plans = read_program(bundle.pte, read_header(bundle.pte))

        def wrong(method: str) -> bool:
            nodes = read_graph(plans[method].delegates[0].payload, storage, where="cut").nodes
            return any(node.kind == "XNNBatchMatrixMultiply" for node in nodes)

        methods = {number: call.method for number, call in enumerate(bundle.calls)}
        outputs = {n: v * np.float32(1.01) if wrong(methods[n]) else v for n, v in result.outputs.items()}
        return replace(result, outputs=outputs)


def test_first_wrong_node_of_a_delegate_is_named(micro_model: Path, micro: Checkpoint, clean_trace: Traced) -> None:
    """Nine nodes, the seventh is at fault; on a sound runtime every cut agrees."""
    artifact = open_artifact(micro_model / "model.pte")
    state = Machine(artifact).methods["vision_encoder"]
    steps = [s for s in state.plan.instructions if s.kind == "delegate"]
    step = next(s for s in steps if any(n.kind == "XNNSoftmax" for n in state.graph(s).nodes))
    traces = read_trace(clean_trace.folders[0])
    count = len(state.graph(step).inputs)
    inputs = [torch.from_numpy(t.array()) for t in traces[0][step.index][:count]]
    sound = list(compare_nodes(state, step.index, inputs, LocalRunner()))
    assert len(sound) == len(state.graph(step).nodes)
    assert all(excess(error.compared) <= 1 for error in sound)
    faulty = [
        error for error in compare_nodes(state, step.index, inputs, _FaultyRunner()) if excess(error.compared) > 1
    ]
    assert faulty[0].kind == "XNNBatchMatrixMultiply"


def test_values_outside_their_int8_range_are_named(clean_layers: LayerEvidence, micro: Checkpoint) -> None:
    """Row 13: what a conversion cuts off is counted; a share beyond the limit blames the calibration, and nothing is no pass."""
    replay = clean_layers.replay
    assert replay.ranges

    def judge(layers: LayerEvidence) -> CheckResult:
        subjects = Subjects((), (), open_family(micro).blocks())
        given = SimpleNamespace(layers=layers, subjects=subjects, recipe=Recipe())
        (result,) = results_of("layers.ranges", given)
        return result

    assert judge(clean_layers).verdict == "pass"
    cut = replace(replay.ranges[-1], clipped=0.4)
    wrong = judge(replace(clean_layers, replay=replace(replay, ranges=(*replay.ranges[:-1], cut))))
    assert (wrong.verdict, wrong.step) == ("fail", "quantization")
    assert wrong.where is not None
    assert wrong.where.instruction == cut.instruction
    assert judge(replace(clean_layers, replay=replace(replay, ranges=()))).verdict == "error"


def test_clipped_share_counts_what_int8_cuts_off() -> None:
    """Half a step beyond an end is still rounded to it."""
    x = torch.tensor([-129.0, -128.4, -3.0, 0.0, 127.4, 127.6, 400.0, 5.0])
    assert clipped_share(x, scale=1.0, zero_point=0) == 3 / 8
    assert clipped_share(x / 2, scale=0.5, zero_point=0) == 3 / 8
