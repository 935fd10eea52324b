"""Faults in the bytes of a program: step and module in the first line (numbers are rows of docs/faults.md). `verifier/faults` has many more."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from tests.faults.judging import blamed, compare_with_trace, judged, recipe_of, trace_conversation
from verifier.artifact.program import open_artifact
from verifier.artifact.storage import Span
from verifier.audit.recipe import quantized_linear
from verifier.audit.run import audit_weights
from verifier.core.types import Scheme
from verifier.families.checkpoint import Checkpoint
from verifier.families.registry import open_family
from verifier.faults.surgery import change_bytes, find_constants, program_of, write_scalar
from verifier.ladder.limits import excess
from verifier.ladder.records import Compared


def test_clean_program_passes_every_step(micro_model: Path) -> None:
    """The other side of every test below."""
    assert judged(micro_model / "model.pte", micro_model)["verdict"] == "pass"


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
    constant = find_constants(victim, micro)["text_decoder.layers.0.attention.wv.weight"]
    weight = micro.tensor("model.language_model.layers.0.self_attn.v_proj.weight").to(torch.bfloat16).float()
    made = quantized_linear(weight, Scheme(constant.value.quantization.group_size))
    nibbles = (made.integers.to(torch.int16) + 8).to(torch.uint8).reshape(-1, 2)
    packed = (nibbles[:, 0] | (nibbles[:, 1] << 4)).numpy()
    change_bytes(victim, constant.value.constant, lambda _old: packed)
    step, module, _ = blamed(victim, micro_model, "weights.*")
    assert (step, module) == ("lowering", "text_decoder.layers.0.attention.wv")


def test_swapped_layers(victim: Path, micro_model: Path, micro: Checkpoint) -> None:
    """`wo` of both layers swapped, integers and scales: every tensor is there, none is where it belongs."""
    names = ("layers.0.attention.wo.weight", "layers.1.attention.wo.weight")
    constants = find_constants(victim, micro)
    first, second = (constants[f"text_decoder.{name}"] for name in names)
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
    constants = find_constants(clean, micro)
    places = {name: constants[f"text_decoder.{name}"].value.constant for name in names}
    chosen = [rng.choice(names) for _ in range(64)]
    return [
        Flip(name, places[name].offset + rng.randrange(places[name].size), 1 << rng.randrange(8)) for name in chosen
    ]


@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_nibble_flips_are_all_found_by_the_audit(
    victim: Path, flips: list[Flip], micro: Checkpoint, micro_model: Path, count: int
) -> None:
    """One element of one tensor, named; nothing is run."""
    assert len(flips) == 64
    for flip in flips[:count]:
        flip.apply(victim)
        audit = audit_weights(open_artifact(victim), open_family(micro), recipe_of(micro_model))
        wrong = [(record.name, record.wrong) for record in audit.constants if record.reason]
        assert wrong == [(f"text_decoder.{flip.name}", 1)]
        flip.apply(victim)


def _blamed_by_layers(
    flip: Flip, victim: Path, micro_model: Path, micro: Checkpoint
) -> tuple[set[str], list[Compared]]:
    """The runtime runs the flipped file. Modules that its trace alone finds to differ from the recipe's constants, and results
    that it finds to differ from the file's own bytes."""
    flip.apply(victim)
    with TemporaryDirectory(dir=victim.parent) as folder:
        traced = trace_conversation(victim, micro_model, micro, Path(folder))
        layers = compare_with_trace(victim, micro_model, micro, traced)
    flip.apply(victim)
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
