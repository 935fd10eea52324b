"""Bounds of nodes and operators: none without one, each passes on what its operands are off by, and what is not decided is not passed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from verifier.artifact.plan import Instruction
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.quantization import PerToken
from verifier.backends.xnnpack.nodes import NODES, NodeOperator
from verifier.backends.xnnpack.run import run_graph
from verifier.checks.layers import UNEXPLAINED, kernel
from verifier.core.limits import UNIT
from verifier.ladder.compared import compare_tensors
from verifier.ladder.evidence import LayerEvidence
from verifier.ladder.limits import excess
from verifier.ladder.records import Aligned, Compared, Replay
from verifier.ladder.stages import Again, settle
from verifier.measures.evidence import Subjects
from verifier.operators.operator import Operator, UnknownOperationError
from verifier.operators.registry import OPERATORS
from verifier.operators.rounding import any_order, likely

NO_STORAGE: Any = None


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _graph(kind: str, inputs: list[Tensor], shape: tuple[int, ...], **attributes: object) -> Graph:
    """One node whose operands come from outside."""
    facts = [GraphValue(id, "fp32", tuple(x.shape), None, None, id) for id, x in enumerate(inputs)]
    out = GraphValue(len(inputs), "fp32", shape, None, None, len(inputs))
    ids = tuple(range(len(inputs)))
    node = Node(0, kind, ids, len(inputs), attributes, None)
    return Graph((node,), {fact.id: fact for fact in [*facts, out]}, ids, (len(inputs),))


def _bounded(graph: Graph, inputs: list[Tensor], passed: list[float], **rules: Any) -> tuple[Tensor, Tensor]:
    """Result and bound for operands that are off by `passed`."""
    bounds = {
        id: torch.full(x.shape, off, dtype=torch.float64)
        for id, (x, off) in enumerate(zip(inputs, passed, strict=True))
    }
    (made,) = run_graph(graph, NO_STORAGE, inputs, bounds=bounds, **rules)
    return made, bounds[graph.outputs[0]]


def test_operator_without_a_bound_does_not_construct() -> None:
    """Neither a node nor an operator of the program, and none is registered without."""

    def evaluate(*_given: object) -> Any:
        return None

    with pytest.raises(TypeError, match="bound"):
        NodeOperator("XNNMaximum", evaluate)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="bound"):
        Operator("aten::maximum.out", evaluate)  # type: ignore[call-arg]
    assert len(NODES.records) >= 25
    assert len(OPERATORS.records) >= 55
    assert all(callable(record.bound) for record in [*NODES, *OPERATORS])


def test_unknown_node_is_named() -> None:
    """A node of two operands does not get the bound of an addition."""
    x = [_drawn(4), _drawn(4)]
    with pytest.raises(UnknownOperationError, match="cannot evaluate XNNPACK node") as caught:
        _bounded(_graph("XNNMaximum", x, (4,)), x, [0, 0])
    assert "XNNMaximum" in str(caught.value)


def _operands(kind: str) -> list[Tensor]:
    if kind in ("XNNReciprocalSquareRoot", "XNNSquareRoot"):
        return [_drawn(3, 8).abs() + 0.01]
    if kind == "XNNBatchMatrixMultiply":
        return [_drawn(2, 3, 8), _drawn(2, 8, 4, seed=1)]
    if kind in ("XNNAdd", "XNNSubtract", "XNNMultiply", "XNNDiv"):
        return [_drawn(3, 8), _drawn(3, 8, seed=1)]
    return [_drawn(3, 8)]


COMPUTING = (
    "XNNAdd",
    "XNNSubtract",
    "XNNMultiply",
    "XNNDiv",
    "XNNBatchMatrixMultiply",
    "XNNReciprocalSquareRoot",
    "XNNSquareRoot",
    "XNNSigmoid",
    "XNNGelu",
    "XNNTanh",
    "XNNExp",
    "XNNSquare",
    "XNNSoftmax",
    "XNNNegate",
    "XNNClamp",
    "XNNConvert",
)


@pytest.mark.parametrize("off", [1e-6, 1e-3])
@pytest.mark.parametrize("kind", COMPUTING)
def test_errors_of_operands_are_passed_on(kind: str, off: float) -> None:
    """Operands moved by nearly all that they may be off by, 40 times another way, stay within the bound; the bound is not idle."""
    inputs = _operands(kind)
    exact = _bounded(_graph(kind, inputs, inputs[0].shape, flags=0), inputs, [0.0] * len(inputs))[0]
    graph = _graph(kind, inputs, exact.shape, flags=0)
    made, bound = _bounded(graph, inputs, [off] * len(inputs))
    assert bound.shape == made.shape
    generator, share = torch.Generator().manual_seed(2), 0.0
    for _ in range(40):
        signs = [torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1 for x in inputs]
        moved = [x + 0.8 * off * sign for x, sign in zip(inputs, signs, strict=True)]
        (other,) = run_graph(graph, NO_STORAGE, moved)
        ratio = (other.double() - made.double()).abs() / bound
        share = max(share, float(ratio[bound.isfinite()].max()))
    assert 0.02 < share <= 1


def test_division_by_what_may_be_zero_has_no_bound() -> None:
    """And a result that differs there is not passed."""
    inputs = [torch.ones(2), torch.tensor([1.0, 1e-4])]
    made, bound = _bounded(_graph("XNNDiv", inputs, (2,)), inputs, [0.0, 1e-3])
    assert bound.isfinite().tolist() == [True, False]
    assert _settled(made + torch.tensor([0.0, 5.0]), made, bound, {9: bound}).unexplained
    assert not _settled(made, made, bound, {9: bound}).unexplained


def test_constant_beside_a_value_has_no_error() -> None:
    """What is concatenated carries its own bound, not its content."""
    inputs = [_drawn(2, 3) * 100, _drawn(1, 3) * 100]
    graph = _graph("XNNConcatenate2", inputs, (3, 3), axis=0)
    _, bound = _bounded(graph, inputs, [1e-6, 0.0])
    assert bound[:2].eq(1e-6).all()
    assert bound[2:].eq(0).all()


def test_rows_quantized_from_inexact_numbers_may_tip() -> None:
    """The bound of dynamically quantized rows holds for operands that are off, and is zero for exact ones."""
    x, off = _drawn(16, 64), 2e-3
    facts = {
        0: GraphValue(0, "fp32", (16, 64), None, None, 0),
        1: GraphValue(1, "qdint8", (16, 64), PerToken(1), None, None),
    }
    graph = Graph((Node(0, "XNNConvert", (0,), 1, {}, None),), facts, (0,), (1,))
    rows: list[Any] = []

    def observe(_index: int, value: Any, bound: Tensor | None) -> None:
        rows.append((value, bound))

    from verifier.backends.xnnpack.arithmetic import dequantize_rows

    run_graph(graph, NO_STORAGE, [x], observe=observe, bounds={})
    assert rows[-1][1].eq(0).all()
    run_graph(graph, NO_STORAGE, [x], observe=observe, bounds={0: torch.full(x.shape, off, dtype=torch.float64)})
    exact, bound = rows[-1]
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        moved = x + 0.99 * off * (torch.rand(x.shape, generator=generator) * 2 - 1)
        run_graph(graph, NO_STORAGE, [moved], observe=observe)
        assert ((dequantize_rows(rows[-1][0]) - dequantize_rows(exact)).abs() <= bound).all()
    assert float((bound == 0).double().mean()) < 0.5
    assert float(bound.mean()) < float(exact.scale.double().mean())


def _record(operator: str = "BatchMatrixMultiply") -> Compared:
    return Compared(0, "text_decoder", 3, operator, 0, "bound", 1)


class _Again(Again):
    """Made-up bounds and orders."""

    def __init__(self, limits: dict[int, Tensor], orders: tuple[dict[int, Tensor], ...], groups: bool) -> None:
        state: Any = None
        super().__init__(state, Instruction(3, "kernel", "aten::bmm.out", (), None), {})
        self.__dict__ |= {"bounds": limits, "orders": orders, "has_groups": groups}


def _settled(
    actual: Tensor,
    expected: Tensor,
    screen: Tensor,
    limits: dict[int, Tensor],
    orders: tuple[dict[int, Tensor], ...] = (),
    operator: str = "BatchMatrixMultiply",
) -> Compared:
    def compare(made: Tensor, bound: Tensor | None) -> Compared:
        return compare_tensors(_record(operator), actual, made, quantum=None, bound=bound, propagated=None)

    return settle(compare, actual, expected, screen, 9, _Again(limits, orders, "Fully" in operator))


ROW = 0.5070738420, 0.5070691705
"""768 attention weights and values of one sign: the exact sum, and the runtime's."""


def _row(runtime: float, orders: tuple[float, ...]) -> Compared:
    exact, made = torch.tensor([ROW[0]]), torch.tensor([runtime])
    magnitude = torch.tensor([ROW[0]], dtype=torch.float64)
    screen, limits = likely(768) * magnitude, {9: any_order(768) * magnitude}
    return _settled(made, exact, screen, limits, tuple({9: torch.tensor([o])} for o in orders))


def test_long_chain_of_one_sign_is_sound() -> None:
    """The row that left the first stage passes, because the order of its kernel gives it; so does what lies near it."""
    for runtime in (ROW[1], ROW[1] + 5e-7, ROW[1] - 5e-7):
        record = _row(runtime, (ROW[1],))
        assert record.reordered
        assert not record.unexplained
        assert excess(record) <= 1
    assert not _row(ROW[0], (ROW[1],)).reordered


def test_what_no_order_gives_is_wrong() -> None:
    """One of 768 products dropped, and twice the bound."""
    for runtime in (ROW[0] * (1 - 1 / 768), ROW[0] * (1 + 2 * any_order(768))):
        record = _row(runtime, (ROW[1],))
        assert excess(record) > 1
        assert not record.reordered


def test_what_no_known_order_gives_is_not_passed() -> None:
    """Beyond the screen of all known orders, within the bound: neither a fault nor a pass."""
    record = _row(ROW[0] + 1e-5, (ROW[1],))
    assert record.unexplained
    assert excess(record) <= 1
    aligned = {("text_decoder", 3): Aligned("text_decoder.layers.0.attention.sdpa", "text_decoder.layers.0.attention")}
    layers = LayerEvidence(aligned, Replay((record,), (), (), {}, {}))
    subjects = Subjects((), (), ("text_decoder.layers.0.attention",))
    evidence: Any = SimpleNamespace(layers=layers, subjects=subjects)
    (result,) = kernel.results(evidence)
    assert result.verdict == "error"
    assert UNEXPLAINED in result.message
    assert "text_decoder.layers.0.attention.sdpa" in result.message
    sound = replace(layers, replay=Replay((replace(record, unexplained=False),), (), (), {}, {}))
    evidence = SimpleNamespace(layers=sound, subjects=subjects)
    assert kernel.results(evidence)[0].verdict == "pass"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "operator", ["BatchMatrixMultiply", "Convert+FullyConnected", "Convert+FullyConnected+Softmax"]
)
def test_no_number_is_excused_by_the_others(operator: str, value: float) -> None:
    """One element of a linear is not finite; the rest has more than 120 dB."""
    expected = _drawn(40, 50)
    actual = expected.clone()
    actual[3, 4] = value
    bound = UNIT * 8 * expected.double().abs()
    record = _settled(actual, expected, bound, {9: bound}, ({9: expected},), operator)
    assert excess(record) == float("inf")


def test_bound_of_an_infinite_result_is_no_nan() -> None:
    """An exact operand plus a mask of -inf: nothing is known of the bound there, which is infinite; NaN would read as a wrong kernel."""
    from verifier.operators.rounding import rounded

    out = rounded(torch.tensor([1.0, torch.inf]).double(), torch.zeros(2).double())
    assert out.tolist() == [2.0**-24, torch.inf]


def test_masked_addend_of_a_softmax_leaves_a_bound() -> None:
    """An addition of a mask of -inf has no finite bound there; the sums beside it keep theirs (random-7 of the sound artifacts)."""
    from verifier.operators.bounds import softmax_share

    x = torch.tensor([[0.5, 0.25, -torch.inf]]).double()
    passed = torch.tensor([[1e-8, 1e-8, torch.nan]]).double()
    share = softmax_share(x, x.softmax(-1), passed, 16 * 2.0**-24)
    assert bool(share.isfinite().all())
    assert float(share.max()) < 1e-5
