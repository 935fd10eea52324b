"""Faults in the bytes of a program: step and module in the first line (numbers are rows of FAULTS.md)."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.judging import blamed, compare_with_trace, judged, recipe_of, trace_conversation
from tests.support import EMBEDDED_PTE, export
from tests.surgery import change_bytes, find_instruction, graph_of, program_of, write_scalar
from verifier.artifact.program import open_artifact
from verifier.artifact.storage import Span
from verifier.audit.inventory import take_inventory
from verifier.audit.recipe import quantized_linear
from verifier.audit.run import audit_weights
from verifier.checkpoint import EMBEDDED, Checkpoint, open_checkpoint
from verifier.ladder.limits import excess
from verifier.ladder.replay import Compared
from verifier.types import Recipe


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


def test_64_nibble_flips_are_all_found_by_the_audit(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """One element of one tensor, named; nothing is run."""
    for flip in flips:
        flip.apply(victim)
        audit = audit_weights(open_artifact(victim), micro, recipe_of(micro_model))
        wrong = [(record.name, record.wrong) for record in audit.constants if record.reason]
        assert wrong == [(f"text_decoder.{flip.name}", 1)]
        flip.apply(victim)


def _blamed_by_layers(
    flip: Flip, victim: Path, micro_model: Path, micro: Checkpoint
) -> tuple[set[str], list[Compared]]:
    """The runtime runs the flipped file. Modules that its trace alone finds to differ from the recipe's constants, and results
    that it finds to differ from the file's own bytes."""
    flip.apply(victim)
    traced = trace_conversation(victim, micro_model, micro, victim.parent / "trace")
    layers = compare_with_trace(victim, micro_model, micro, traced)
    flip.apply(victim)
    assert layers.replay is not None
    broken = {layers.alignment[r.method, r.instruction].module for r in layers.replay.constants if excess(r) > 1}
    return broken, [record for record in layers.replay.compared if excess(record) > 1]


def test_nibble_flips_are_found_by_the_layers_alone(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """One of the 64; the slow test takes all. The kernels are not to blame."""
    module = f"text_decoder.{flips[0].name.removesuffix('.weight')}"
    assert _blamed_by_layers(flips[0], victim, micro_model, micro) == ({module}, [])


@pytest.mark.slow
def test_all_64_nibble_flips_are_found_by_the_layers_alone(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path
) -> None:
    """Every weight of a linear meets some activation that is not zero, so every flip shows."""
    for flip in flips:
        module = f"text_decoder.{flip.name.removesuffix('.weight')}"
        assert _blamed_by_layers(flip, victim, micro_model, micro) == ({module}, [])
