"""Faults of FAULTS.md that the comparison layer by layer must find: step and module in the first line (numbers are its rows)."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runner.local import LocalRunner
from runner.protocol import Bundle, Result
from tests.support import EMBEDDED_PTE, export, make_micro_model, verify
from tests.surgery import change_bytes, find_instruction, graph_of, program_of, write_scalar
from verifier.artifact.header import read_header
from verifier.artifact.program import open_artifact, read_program
from verifier.artifact.storage import Span
from verifier.artifact.xnnpack import read_graph
from verifier.audit.inventory import take_inventory
from verifier.audit.recipe import quantized_linear
from verifier.audit.run import audit_weights
from verifier.checkpoint import EMBEDDED, Checkpoint, open_checkpoint
from verifier.checks.registry import CHECKS
from verifier.evidence import Subjects
from verifier.export.manifest import read_manifest
from verifier.golden import load_golden
from verifier.interpret.machine import Machine
from verifier.ladder.align import list_blocks
from verifier.ladder.descend import descend
from verifier.ladder.gather import LayerEvidence, Traced, compare_layers, run_traced
from verifier.ladder.limits import excess
from verifier.ladder.trace import CallTrace, read_trace
from verifier.model.definition import build_definition
from verifier.model.prompt import Tokenizer
from verifier.reference import load_sample
from verifier.types import CheckResult, Recipe

UNBANDED = "weights.*,layers.coverage,layers.kernel,layers.constants,layers.graph"
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def micro_model(once: Once) -> Path:
    """A folder with a micro checkpoint, its golden answers and its export."""
    return once("micro-model", make_micro_model)


@pytest.fixture(scope="session")
def micro(micro_model: Path) -> Checkpoint:
    """The micro checkpoint."""
    return open_checkpoint(micro_model)


@pytest.fixture
def victim(micro_model: Path, tmp_path: Path) -> Path:
    """A copy of the micro program without its manifest."""
    return Path(shutil.copy(micro_model / "model.pte", tmp_path / "victim.pte"))


def judged(pte: Path, model: Path, checks: str = UNBANDED) -> dict[str, object]:
    """`report.json` of a run of the public command."""
    report = pte.parent / "report"
    status = verify(pte, "--model", str(model), "--checks", checks, "--report", str(report))
    text: dict[str, object] = json.loads((report / "report.json").read_text())
    assert status == {"pass": 0, "fail": 1, "error": 2}[str(text["verdict"])]
    return text


def blamed(pte: Path, model: Path, checks: str = UNBANDED) -> tuple[str, str, str]:
    """Step, module and first line of the message that a faulty file is blamed with."""
    text = judged(pte, model, checks)
    assert text["verdict"] == "fail"
    blame = text["blame"]
    assert isinstance(blame, dict)
    return blame["step"], blame["module"], blame["message"].splitlines()[0]


def test_clean_program_passes_every_step(micro_model: Path) -> None:
    """The other side of every test below."""
    assert judged(micro_model / "model.pte", micro_model)["verdict"] == "pass"


def test_3_dropped_bias(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """The bias of one projector linear is zero."""
    _, constant = find_instruction(victim, "vision_encoder", "projector.linear_1.bias", micro)
    change_bytes(victim, constant.value.constant, np.zeros_like)
    step, module, message = blamed(victim, micro_model)
    assert (step, module) == ("lowering", "vision_encoder.projector.linear_1")
    assert "projector.linear_1" in message


def test_25_zero_point_0_for_8(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """4-bit weights of one linear stored without their zero point."""
    _, constant = find_instruction(victim, "text_decoder", "layers.1.feed_forward.w1.weight", micro)
    change_bytes(victim, constant.value.constant, lambda packed: packed ^ 0x88)
    step, module, message = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.layers.1.feed_forward.w1")
    assert "layers.1.feed_forward.w1" in message


def test_37_cache_of_one_layer_is_not_written(victim: Path, micro_model: Path) -> None:
    """The key rows of layer 1 go into layer 0's cache; its own stays empty, so its first chunk already attends to nothing."""
    plan = open_artifact(victim).plans["text_decoder"]
    updates = [step for step in plan.instructions if step.name == "llama::update_cache.out"]
    assert len(updates) == 4
    program = program_of(victim)
    method = next(p for p in program.root.execution_plan if p.name == "text_decoder")
    call = method.chains[0].instructions[updates[2].index].instr_args
    at = program.items(call, "KernelCall", "args") + 4  # the second argument is the cache
    write_scalar(victim, (at, "i"), updates[0].args[1])
    step, module, message = blamed(victim, micro_model)
    assert (step, module) == ("lowering", "text_decoder.layers.1.attention")
    assert "text_decoder.layers.1.attention" in message


def test_43_weights_cast_before_quantizing(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """One linear quantized from half precision that lost bits: other integers, a good SQNR."""
    _, constant = find_instruction(victim, "text_decoder", "layers.0.attention.wv.weight", micro)
    weight = micro.tensor("model.language_model.layers.0.self_attn.v_proj.weight").to(torch.bfloat16).float()
    made = quantized_linear(weight, Recipe(group_size=constant.value.quantization.group_size))
    nibbles = (made.integers.to(torch.int16) + 8).to(torch.uint8).reshape(-1, 2)
    packed = (nibbles[:, 0] | (nibbles[:, 1] << 4)).numpy()
    change_bytes(victim, constant.value.constant, lambda _old: packed)
    step, module, _ = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.layers.0.attention.wv")


def test_swapped_layers(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """`wo` of both layers swapped, integers and scales: every tensor is there, none is where it belongs."""
    names = ("layers.0.attention.wo.weight", "layers.1.attention.wo.weight")
    first, second = (find_instruction(victim, "text_decoder", name, micro)[1] for name in names)
    for a, b in (
        (first.value.constant, second.value.constant),
        (first.value.quantization.scales, second.value.quantization.scales),
    ):
        one, other = (np.fromfile(victim, np.uint8, s.size, offset=s.offset) for s in (a, b))
        change_bytes(victim, a, lambda _old, new=other: new)
        change_bytes(victim, b, lambda _old, new=one: new)
    step, module, message = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.layers.0.attention.wo")
    assert "swapped" in message


def test_epsilon_of_one_norm(victim: Path, micro_model: Path) -> None:
    """A change that no output shows."""
    epsilons = [c for c in take_inventory(open_artifact(victim)) if c.role == "epsilon"]
    change_bytes(victim, epsilons[1].value.constant, lambda _old: np.array([1e-6], np.float32))
    step, module, message = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.layers.0.attention_norm")  # one constant serves all norms
    assert "1e-06" in message


def test_one_rope_row(victim: Path, micro_model: Path) -> None:
    """Position 700 alone: no conversation here gets that far."""
    values = open_artifact(victim).plans["text_decoder"].values
    table = next(
        v for v in values if getattr(v, "constant", None) is not None and v.dtype == "FLOAT" and v.sizes[0:1] == (768,)
    )
    row_bytes = table.sizes[1] * 4
    change_bytes(victim, Span(table.constant.offset + 700 * row_bytes, row_bytes), lambda old: np.roll(old, 4))
    step, module, message = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.rope")
    assert "[700," in message


def test_27_interleaved_rope(micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported with the other convention of RoPE: neighbours are rotated instead of halves."""
    from verifier.model import text

    arguments = text._arguments

    def interleaved(*given: object, **named: object) -> object:
        made = arguments(*given, **named)  # type: ignore[arg-type]
        made.use_hf_rope = False
        return made

    with monkeypatch.context() as patched:
        patched.setattr(text, "_arguments", interleaved)
        assert export(micro_model, tmp_path / "rope.pte") == 0
    text_of_run = judged(tmp_path / "rope.pte", micro_model)
    failed = [(c["id"], c["case"]) for c in text_of_run["checks"] if c["verdict"] == "fail"]  # type: ignore[attr-defined]
    assert failed[0] == ("weights.derived", "program")
    assert ("layers.graph", "text_decoder.layers.0.attention") in failed
    blame = text_of_run["blame"]
    assert isinstance(blame, dict)
    assert (blame["step"], blame["module"]) == ("lowering", "text_decoder.rope")


def _tiny_victim(tmp_path: Path) -> Path:
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "victim.pte"))


def test_10_class_token_appended_last(tmp_path: Path) -> None:
    """The operands of the concatenation swapped: every patch gets its neighbour's position."""
    victim = _tiny_victim(tmp_path)
    artifact = open_artifact(victim)
    steps = [s for s in artifact.plans["vision_encoder"].instructions if s.kind == "delegate"]
    graph = graph_of(artifact, "vision_encoder", steps[1].index)
    cat = next(n.xnode_union for n in graph.root.xnodes if n.xnode_union.kind == "XNNConcatenate2")
    first, second = (graph.field(cat, "_XNNCat", name) for name in ("input1_id", "input2_id"))
    write_scalar(victim, first, cat.input2_id)
    write_scalar(victim, second, cat.input1_id)
    step, module, message = blamed(victim, EMBEDDED, "weights.*,layers.*")
    assert (step, module) == ("lowering", "vision_encoder.input")
    assert "vision_encoder.input" in message


def test_46_zero_point_read_wrongly(tmp_path: Path) -> None:
    """The residual stream enters layer 2's second half with another zero point than it left the first half with."""
    victim = _tiny_victim(tmp_path)
    artifact = open_artifact(victim)
    at, _ = find_instruction(victim, "vision_encoder", "tower.layers.2.fc1.weight", open_checkpoint(EMBEDDED))
    graph = graph_of(artifact, "vision_encoder", at)
    quantized = [v.xvalue_union for v in graph.root.xvalues if v.xvalue_union.kind == "XNNQuantizedTensorValue"]
    inputs = [v for v in quantized if v.tensor_value.id_out in graph.root.input_ids]
    given = next(v.quant_params for v in inputs if len(v.tensor_value.dims) == 3)
    write_scalar(victim, graph.field(given, "PerTensorQuant", "zero_point"), given.zero_point + 40)
    step, module, _ = blamed(victim, EMBEDDED, "weights.*,layers.*")
    assert (step, module) == ("lowering", "vision_encoder.layers.2")


@dataclass(frozen=True)
class Flip:
    """One bit of one nibble: `mask` of the byte at `offset` in the file, in the tensor `name`."""

    name: str
    offset: int
    mask: int

    def apply(self, path: Path) -> None:
        """Flip it; twice leaves the file as it was."""
        change_bytes(path, Span(self.offset, 1), lambda byte: byte ^ np.uint8(self.mask))


@pytest.fixture(scope="session")
def flips(micro_model: Path, micro: Checkpoint) -> list[Flip]:
    """64 random flips in the decoder's 4-bit weights."""
    rng, clean = random.Random(64), micro_model / "model.pte"
    modules = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2")
    names = ["output.weight", *(f"layers.{i}.{module}.weight" for i in range(2) for module in modules)]
    places = {name: find_instruction(clean, "text_decoder", name, micro)[1].value.constant for name in names}
    chosen = [rng.choice(names) for _ in range(64)]
    return [
        Flip(name, places[name].offset + rng.randrange(places[name].size), 1 << rng.randrange(8)) for name in chosen
    ]


def _recipe(micro_model: Path) -> Recipe:
    manifest = read_manifest(micro_model / "model.pte")
    assert manifest is not None
    return manifest.recipe


def test_64_nibble_flips_are_all_found_by_the_audit(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """One element of one tensor, named; nothing is run."""
    for flip in flips:
        flip.apply(victim)
        audit = audit_weights(open_artifact(victim), micro, _recipe(micro_model))
        wrong = [(record.name, record.wrong) for record in audit.constants if record.reason]
        assert wrong == [(f"text_decoder.{flip.name}", 1)]
        flip.apply(victim)


def _run_traced(pte: Path, micro_model: Path, micro: Checkpoint, folder: Path) -> Traced:
    golden = load_golden(micro_model, micro.sha256)
    tokenizer = Tokenizer(micro_model / "tokenizer.model")
    sample = load_sample(golden.images[0], tokenizer, side_px=56)
    folder.mkdir(exist_ok=True)
    made = run_traced(open_artifact(pte), [sample], LocalRunner(), folder, patches=16)
    assert not made.problem
    return made


def _compare(pte: Path, micro_model: Path, micro: Checkpoint, traced: Traced) -> LayerEvidence:
    artifact, recipe = open_artifact(pte), _recipe(micro_model)
    definition = build_definition(micro, max_len=768)
    layers = compare_layers(
        artifact, micro, recipe, audit_weights(artifact, micro, recipe), definition, traced, LocalRunner()
    )
    assert layers.replay is not None
    return layers


def _find_by_layers(flip: Flip, victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """The runtime runs the flipped file; its trace alone, against the recipe's constants, must name the module."""
    flip.apply(victim)
    traced = _run_traced(victim, micro_model, micro, victim.parent / "trace")
    layers = _compare(victim, micro_model, micro, traced)
    assert layers.replay is not None
    broken = {layers.alignment[r.method, r.instruction].module for r in layers.replay.constants if excess(r) > 1}
    assert broken == {f"text_decoder.{flip.name.removesuffix('.weight')}"}
    assert all(excess(record) <= 1 for record in layers.replay.compared)  # the kernels are not to blame
    flip.apply(victim)


def test_nibble_flips_are_found_by_the_layers_alone(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """One of the 64; the slow test takes all."""
    for flip in flips[:1]:
        _find_by_layers(flip, victim, micro_model, micro)


@pytest.mark.slow
def test_all_64_nibble_flips_are_found_by_the_layers_alone(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """Every weight of a linear meets some activation that is not zero, so every flip shows."""
    for flip in flips:
        _find_by_layers(flip, victim, micro_model, micro)


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
    return _run_traced(micro_model / "model.pte", micro_model, micro, tmp_path_factory.mktemp("trace"))


def _kernel_failures(
    monkeypatch: pytest.MonkeyPatch,
    micro_model: Path,
    micro: Checkpoint,
    traced: Traced,
    fault: Callable[[list[CallTrace], LayerEvidence], None],
) -> list[CheckResult]:
    """Results of `layers.kernel` that fail when the runtime's trace is spoilt in place by `fault`."""
    pte = micro_model / "model.pte"
    clean = _compare(pte, micro_model, micro, traced)
    traces = read_trace(traced.folder)
    fault(traces, clean)
    monkeypatch.setattr("verifier.ladder.gather.read_trace", lambda _folder: traces)
    spoilt = _compare(pte, micro_model, micro, traced)
    check = next(c for c in CHECKS if c.id == "layers.kernel")
    subjects = Subjects((), (), list_blocks(micro.geometry))
    evidence = SimpleNamespace(layers=spoilt, subjects=subjects)
    return [r for r in check.run(check, evidence) if r.verdict == "fail"]  # type: ignore[arg-type]


def _instruction(layers: LayerEvidence, module: str) -> int:
    return next(i for (_, i), aligned in layers.alignment.items() if aligned.module == module)


def test_33_mask_of_the_last_query_row_unset(
    monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> None:
    """Attention's last row of a chunk sees what it must not: here, the mean of all values."""

    def fault(traces: list[CallTrace], layers: LayerEvidence) -> None:
        at = _instruction(layers, "text_decoder.layers.1.attention.sdpa")
        out = traces[2][at][0].array()
        out[:, -1] = out.mean(1)
        traces[2][at] = (Spoilt(out),)  # type: ignore[assignment]

    failed = _kernel_failures(monkeypatch, micro_model, micro, clean_trace, fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.1.attention.sdpa")


@pytest.mark.parametrize("kind", ["symmetric", "per tensor", "stride"])
def test_41_42_51_linear_computed_otherwise(
    kind: str, monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> None:
    """Activations quantized symmetrically (41), with one scale for all rows (42); packed weights read with a wrong stride (51)."""

    def fault(traces: list[CallTrace], layers: LayerEvidence) -> None:
        at = _instruction(layers, "text_decoder.layers.0.feed_forward.w1")
        x = torch.from_numpy(traces[2][at][0].array()).double()
        weight = micro.tensor("model.language_model.layers.0.mlp.gate_proj.weight")
        made = quantized_linear(weight, _recipe(micro_model))
        scales = made.scales.reshape(len(weight), -1, 1).double()
        w = (made.integers.double().view(len(weight), scales.shape[1], -1) * scales).view(weight.shape)
        if kind == "stride":
            w, rows = w.roll(1, 0), x
        else:
            peak = x.abs().amax(-1, keepdim=True) if kind == "symmetric" else x.abs().max()
            rows = (x / (peak / 127)).round() * (peak / 127)
        made_out = (rows @ w.T).float().numpy()
        traces[2][at] = (*traces[2][at][:-1], Spoilt(made_out))  # type: ignore[assignment]

    failed = _kernel_failures(monkeypatch, micro_model, micro, clean_trace, fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.0.feed_forward.w1")


@pytest.mark.parametrize("kind", ["alpha ignored", "clamp dropped"])
def test_47_48_one_elementwise_operation_wrong(
    kind: str, monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> None:
    """A residual added once too often (as an ignored alpha of 0 would, 47); a result that a clamp should have limited (48)."""

    def fault(traces: list[CallTrace], layers: LayerEvidence) -> None:
        plan = open_artifact(micro_model / "model.pte").plans["text_decoder"]
        first = _instruction(layers, "text_decoder.layers.0.feed_forward.w2") + 1
        assert plan.instructions[first].kind == "delegate"
        tensors = list(traces[2][first])
        out = tensors[-2].array()
        tensors[-2] = Spoilt(out + tensors[0].array() if kind == "alpha ignored" else out * np.float32(1.5))  # type: ignore[call-overload]
        traces[2][first] = tuple(tensors)

    failed = _kernel_failures(monkeypatch, micro_model, micro, clean_trace, fault)
    assert failed[0].step == "kernel"
    assert failed[0].message.startswith("text_decoder.layers.0.feed_forward")


def test_memory_shared_where_it_must_not_be(
    monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> None:
    """36, 54: what a linear is handed is not what the norm made. Its own arithmetic is right, so only the handover shows it."""
    pte = micro_model / "model.pte"
    clean = _compare(pte, micro_model, micro, clean_trace)
    assert clean.replay is not None and not clean.replay.handovers
    traces = read_trace(clean_trace.folder)
    at = _instruction(clean, "text_decoder.layers.1.attention.wv")
    x = traces[2][at][0].array()
    x[0, 3, :5] += 1
    traces[2][at] = (Spoilt(x), *traces[2][at][1:])  # type: ignore[assignment]
    monkeypatch.setattr("verifier.ladder.gather.read_trace", lambda _folder: traces)
    spoilt = _compare(pte, micro_model, micro, clean_trace)
    assert spoilt.replay is not None
    assert [(h.instruction, h.differing) for h in spoilt.replay.handovers] == [(at, 5)]


def test_trace_with_a_hole_is_never_a_pass(
    monkeypatch: pytest.MonkeyPatch, micro_model: Path, micro: Checkpoint, clean_trace: Traced
) -> None:
    """An instruction that left no trace in any call is an error of coverage."""
    traces = read_trace(clean_trace.folder)
    clean = _compare(micro_model / "model.pte", micro_model, micro, clean_trace)
    at = _instruction(clean, "text_decoder.layers.0.attention.wo")
    for call, trace in zip(clean_trace.calls, traces, strict=True):
        if call.method == "text_decoder":
            trace.pop(at)
    monkeypatch.setattr("verifier.ladder.gather.read_trace", lambda _folder: traces)
    holed = _compare(micro_model / "model.pte", micro_model, micro, clean_trace)
    check = next(c for c in CHECKS if c.id == "layers.coverage")
    result = check.run(check, SimpleNamespace(layers=holed, subjects=Subjects((), (), ())))[0]  # type: ignore[arg-type]
    assert (result.verdict, result.measured["compared"]) == ("error", result.measured["instructions"] - 1)


@dataclass(frozen=True)
class _FaultyRunner:
    """A runtime whose batched matrix product and all that follows it in a delegate is off by a hundredth."""

    name: str = "faulty"

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
    traces = read_trace(clean_trace.folder)
    count = len(state.graph(step).inputs)
    inputs = [torch.from_numpy(t.array()) for t in traces[0][step.index][:count]]
    sound = list(descend(state, step.index, inputs, LocalRunner()))
    assert len(sound) == len(state.graph(step).nodes)
    assert all(excess(error.compared) <= 1 for error in sound)
    faulty = [error for error in descend(state, step.index, inputs, _FaultyRunner()) if excess(error.compared) > 1]
    assert faulty[0].kind == "XNNBatchMatrixMultiply"
