"""The quantized rung of the encoder: the file's int8 operators in the eager model, found by dataflow and compared up to ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import EMBEDDED_PTE
from verifier.artifact.plan import Instruction
from verifier.audit.infer import tower_storage
from verifier.audit.records import Audited
from verifier.audit.run import Audit, audit_weights, with_recipe_constants
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.quantization import PerTensor
from verifier.checks.weights import rounds_to_nearest
from verifier.families.answering import load_sample
from verifier.families.conventions import ENCODER
from verifier.gather.opening import Opened, Request, open_request
from verifier.interpret.machine import Machine, Step
from verifier.ladder.blocks import Taps, TracedCall, find_taps
from verifier.ladder.evidence import BlockError
from verifier.ladder.limits import rounded_limit_db
from verifier.ladder.tower import TowerRung, find_sites, require_placed
from verifier.ladder.tower_blocks import compare_tower
from verifier.operators.operator import UnknownOperationError


@dataclass(frozen=True)
class Seen:
    """llava_tiny's encoder on one picture, interpreted: the streams that norms read, and what a comparison needs."""

    opened: Opened
    audit: Audit
    taps: Taps
    calls: list[TracedCall]
    tapped: dict[tuple[int, int], Tensor]

    def compare(self, definition: Any = None, *, sites: Any = None) -> tuple[BlockError, ...]:
        """All layers against the rung."""
        definition = definition or self.opened.family.definition(max_len=8)
        sites = find_sites(self.opened.artifact, self.audit) if sites is None else sites
        rung = TowerRung(definition.encoder, sites, with_recipe_constants(self.opened.artifact, self.audit))
        return compare_tower(definition, rung, self.taps, self.calls, self.tapped).against_rung


@pytest.fixture(scope="module")
def seen() -> Seen:
    """One picture that is not square."""
    opened = open_request(Request(EMBEDDED_PTE, checks=("weights.*",)))
    audit = audit_weights(opened.artifact, opened.family, opened.recipe)
    golden = next(image for image in opened.golden.images if image.kind == "wide")
    image = torch.from_numpy(load_sample(golden, opened.tokenizer, opened.family).image)
    taps, tapped = find_taps(opened.artifact, audit), dict[tuple[int, int], Tensor]()
    watched = {index for method, index in taps.watched() if method == ENCODER}

    def observe(step: Step) -> None:
        tapped.update({(0, index): x.clone() for index, x in step.outputs.items() if index in watched})

    (tokens,) = Machine(opened.artifact).call(ENCODER, [image], observe=observe)
    return Seen(opened, audit, taps, [TracedCall(ENCODER, (image,), golden.name, tokens)], tapped)


def test_layers_equal_the_eager_model_with_the_files_int8(seen: Seen) -> None:
    """Every half of every layer, far closer than the layers are to fp32."""
    errors = seen.compare()
    layers = seen.opened.checkpoint.geometry.vision.layers_used
    assert len(errors) == 1 + 2 * layers
    assert [error for error in errors if not error.holds] == []
    assert min(error.sqnr_db for error in errors) > 60


def test_which_operators_are_in_int8_is_read_from_the_file(seen: Seen) -> None:
    """Linears, convolution, join, sums and products, each once; none of an encoder without int8."""
    sites = find_sites(seen.opened.artifact, seen.audit)
    layers = seen.opened.checkpoint.geometry.vision.layers_used
    assert len(sites) == 3 + layers * (6 + 2 + 2) + 2
    kinds = {kind for _, kind, _ in sites}
    assert kinds == {"linear", "convolution", "add", "multiply", "concatenate"}


def _halves_of(errors: tuple[BlockError, ...]) -> set[tuple[str, str]]:
    return {(error.block.removeprefix(f"{ENCODER}."), error.part) for error in errors if not error.holds}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda tower: tower.layers[1].norm2.weight.data[3].mul_(1.05), {("layers.1", "feed_forward")}),
        (lambda tower: tower.layers[2].norm1.bias.data.add_(0.01), {("layers.2", "attention")}),
        (
            lambda tower: tower.position_embedding.data.copy_(tower.position_embedding.data.roll(1, 0)),
            {("input", "embedding")},
        ),
    ],
    ids=["a channel of a norm is 5 % larger", "a norm's bias is 0.01 larger", "positions shifted by one"],
)
def test_another_model_is_found_in_its_own_half(seen: Seen, change: Callable[[Any], object], wrong: set[Any]) -> None:
    """A fault that int8 noise hides from fp32 is far above ties; all other halves hold."""
    definition = seen.opened.family.definition(max_len=8)
    with torch.no_grad():
        change(definition.encoder.tower)  # type: ignore[attr-defined]
    assert _halves_of(seen.compare(definition)) == wrong


def test_a_wrong_range_is_found(seen: Seen) -> None:
    """The file rounds with another scale than the graph that is compared says: 1 % in one sum."""
    sites = find_sites(seen.opened.artifact, seen.audit)
    key = next(key for key in sites if key[0].startswith("tower.layers.1.fc2") and key[1] == "add")
    site = sites[key]
    value = site.graph.values[site.node.output]
    assert isinstance(value.quantization, PerTensor)
    other = replace(value, quantization=replace(value.quantization, scale=1.01 * value.quantization.scale))
    graph = replace(site.graph, values=site.graph.values | {value.id: other})
    errors = seen.compare(sites=sites | {key: replace(site, graph=graph)})
    assert _halves_of(errors) == {("layers.1", "feed_forward")}


def test_an_int8_operator_without_counterpart_is_not_passed_over(seen: Seen) -> None:
    """The rung would leave a rounding out: it is no rung then."""
    sites = find_sites(seen.opened.artifact, seen.audit)
    key = next(key for key in sites if key[1] == "multiply")
    extra = sites | {(key[0], "multiply", 7): sites[key]}
    with pytest.raises(UnknownOperationError, match="multiply 7 behind"):
        seen.compare(sites=extra)


def test_a_rounding_that_no_operator_has_is_not_left_out() -> None:
    """fp32 to int8 and straight back: nothing of the model would round there."""
    values = [
        GraphValue(0, "fp32", (4,), None, None, 0),
        GraphValue(1, "qint8", (4,), PerTensor(0.1, 0), None, None),
        GraphValue(2, "fp32", (4,), None, None, 1),
    ]
    nodes = tuple(Node(at, "XNNConvert", (at,), at + 1, {}, None) for at in (0, 1))
    graph = Graph(nodes, {value.id: value for value in values}, (0,), (2,))
    step = Instruction(7, "delegate", "XnnpackBackend", (), None)
    with pytest.raises(UnknownOperationError, match="the rounding to int8 of instruction 7, node 0"):
        require_placed(graph, step)


def test_an_fp32_encoder_is_held_to_rounding(seen: Seen) -> None:
    """Without int8 operators the rung is the definition: the int8 program is far from that."""
    errors = seen.compare(sites={})
    assert not any(error.holds for error in errors)
    assert {error.limit_db for error in errors if error.part == "embedding"} == {rounded_limit_db(1.0)}
    assert rounded_limit_db(10.0) == pytest.approx(rounded_limit_db(1.0) - 20)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([], "int8"),
        (["static", "static", "static", "plain"], "int8"),
        (["plain", "plain", "plain", "static"], "fp32"),
        (["dynamic", "dynamic", "dynamic", "plain"], "dynamic"),
        (["static", "static", "static", "dynamic"], "int8"),
    ],
)
def test_how_the_tower_is_stored_is_said_by_most_of_its_weights(stored: list[str], said: str) -> None:
    """Static int8 has a scale for its input; integers without one meet rows that are quantized when they come (optimum's `qlinear_encoder`)."""
    constants = [
        SimpleNamespace(
            method="vision_encoder",
            role="linear",
            is_quantized=kind != "plain",
            input_scale=0.1 if kind == "static" else None,
        )
        for kind in stored
    ]
    assert tower_storage(constants) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("role", "method", "quantizer", "bounded"),
    [
        ("linear", "vision_encoder", "", True),
        ("convolution", "vision_encoder", "", True),
        ("linear", "vision_encoder", "affine", True),
        ("linear", "vision_encoder", "hqq", False),
        ("linear", "text_decoder", "affine", True),
        ("linear", "text_decoder", "hqq", False),
    ],
)
def test_hqq_may_clip_in_the_tower_too(role: str, method: str, quantizer: str, bounded: bool) -> None:
    """Half a step is the bound of those that round to the nearest; HQQ is held to its own integers."""
    record = Audited("x", "x", method, 0, role, 1, quantizer=quantizer)
    assert rounds_to_nearest(record) == bounded
