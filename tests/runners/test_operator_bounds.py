"""Each operator on ExecuTorch's runtime against its own semantics and bound: programs of one or two nodes, inside a delegate and outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.runners.one_node import Function, Once, Program, Traced, drawn, fails, passes, run
from verifier.ladder.limits import excess
from verifier.operators import bounds
from verifier.operators.operator import Operator, UnknownOperationError
from verifier.operators.registry import OPERATORS

pytestmark = pytest.mark.xdist_group("runner")


def _between(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 1 << 14, dtype=torch.float64).float().reshape(16, -1)


def _one_sided(rows: int, terms: int) -> Tensor:
    """Weights of one sign: the first takes half, the others are so small that a long chain swallows them."""
    weights = torch.full((1, rows, terms), 2.4e-8)
    weights[..., 0] = 0.5
    return weights


def _layer(layer: nn.Module, seed: int = 5) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return layer.eval()


class Columns(nn.Module):
    """x W with a weight [K, N]: XNNPACK holds it as it is, with a flag that says so."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[S, K] -> [S, N]."""
        return torch.mm(x, self.weight)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    made: Tensor = torch.ops.llama.custom_sdpa(q, k, v, k.shape[1] - q.shape[1], None, 0.0, True)
    return made


def _sink(rows: int, score: float) -> Tensor:
    """Keys of which the first takes nearly all of the weight of queries of ones; the others' parts are swallowed one by one."""
    keys = torch.zeros(1, rows, 2, 64)
    keys[:, 0] = score / 8
    return keys


_PRODUCT = (drawn(2, 9, 300), drawn(2, 300, 7, seed=1))
_SWALLOWED = (_one_sided(4, 768), torch.ones(1, 768, 8))
DELEGATED: dict[str, Program] = {
    "bmm": (Function(torch.bmm), _PRODUCT),
    "bmm_of_one_sign": (Function(torch.bmm), _SWALLOWED),
    "softmax": (Function(lambda x: torch.softmax(x, -1)), (drawn(8, 1000, scale=8),)),
    "conv2d": (_layer(nn.Conv2d(3, 5, 3, stride=2, padding=1)), (drawn(1, 3, 17, 16),)),
    "linear": (_layer(nn.Linear(400, 9)), (drawn(3, 400),)),
    "sigmoid": (Function(torch.sigmoid), (_between(-80, 80),)),
    "gelu": (Function(nn.functional.gelu), (_between(-9, 9),)),
    "tanh": (Function(torch.tanh), (_between(-12, 12),)),
    "exp": (Function(torch.exp), (_between(-80, 80),)),
    "sqrt": (Function(torch.sqrt), (torch.exp2(_between(-80, 80)),)),
    "rsqrt": (Function(torch.rsqrt), (torch.exp2(_between(-80, 80)),)),
    "square": (Function(torch.square), (_between(-9, 9),)),
    "hardswish": (Function(nn.functional.hardswish), (_between(-9, 9),)),
    "sin": (Function(torch.sin), (_between(-700, 700),)),
    "cos": (Function(torch.cos), (_between(-700, 700),)),
    "linear_of_columns": (Columns(drawn(400, 9, scale=0.1)), (drawn(3, 400),)),
    "div": (Function(torch.div), (drawn(16, 99), drawn(16, 99, seed=1))),
    "add": (Function(torch.add), (drawn(16, 99), drawn(16, 99, seed=1))),
    "sub": (Function(torch.sub), (drawn(16, 99), drawn(16, 99, seed=1))),
    "mul": (Function(torch.mul), (drawn(16, 99), drawn(16, 99, seed=1))),
    "chain": (
        Function(lambda a, b, c: torch.bmm(torch.softmax(torch.bmm(a, b), -1), c)),
        (drawn(2, 9, 64), drawn(2, 64, 200, seed=1), drawn(2, 200, 8, seed=2)),
    ),
}
PORTABLE: dict[str, Program] = {
    "bmm": (Function(torch.bmm), _PRODUCT),
    "bmm_of_one_sign": (Function(torch.bmm), _SWALLOWED),
    "softmax": (Function(lambda x: torch.softmax(x, -1)), (drawn(8, 1000, scale=8),)),
    "softmax_of_columns": (Function(lambda x: torch.softmax(x, 1)), (drawn(2, 300, 5, scale=8),)),
    "mean": (Function(lambda x: x.mean(-1, keepdim=True)), (drawn(8, 4096),)),
    "mean_of_two": (Function(lambda x: x.mean((0, 2))), (drawn(8, 5, 700),)),
    "layer_norm": (_layer(nn.LayerNorm(512)), (drawn(6, 512) + 3,)),
    "rsqrt": (Function(torch.rsqrt), (torch.exp2(_between(-80, 80)),)),
    "sigmoid": (Function(torch.sigmoid), (_between(-80, 80),)),
    "add_scaled": (Function(lambda a, b: torch.add(a, b, alpha=0.3)), (drawn(16, 99), drawn(16, 99, seed=1))),
    "add_number": (Function(lambda a: a + 0.3), (drawn(16, 99),)),
    "mul_number": (Function(lambda a: a * 0.3), (drawn(16, 99),)),
    "div": (Function(torch.div), (drawn(16, 99), drawn(16, 99, seed=1))),
}
ATTENDING: dict[str, Program] = {
    "attention": (
        Function(_attention),
        (drawn(1, 9, 4, 64), drawn(1, 768, 2, 64, seed=1), drawn(1, 768, 2, 64, seed=2)),
    ),
    "attention_with_a_sink": (
        Function(_attention),
        (torch.ones(1, 9, 4, 64), _sink(768, 17.7), torch.ones(1, 768, 2, 64)),
    ),
}


UNKNOWN: dict[str, Program] = {"tanh": (Function(torch.tanh), (drawn(2, 3),))}


@pytest.fixture(scope="module")
def inside(once: Once) -> Traced:
    """XNNPACK's nodes."""
    return run(once, "bounds-delegated", DELEGATED, delegated=True)


@pytest.fixture(scope="module")
def outside(once: Once) -> Traced:
    """ExecuTorch's own kernels."""
    return run(once, "bounds-portable", PORTABLE, delegated=False)


@pytest.fixture(scope="module")
def attending(once: Once) -> Traced:
    """The wheel's attention."""
    return run(once, "bounds-attention", ATTENDING, delegated=False)


CASES = [
    *(("inside", name) for name in DELEGATED),
    *(("outside", name) for name in PORTABLE),
    *(("attending", name) for name in ATTENDING),
]


@pytest.mark.parametrize(("where", "name"), CASES)
def test_sound_result_is_within_its_bound(traced: Traced, name: str) -> None:
    """The runtime's own result passes, and is decided."""
    records = traced.compared(name)
    assert records
    assert all(record.kind == "bound" for record in records)
    assert passes(records)


@pytest.mark.parametrize(("where", "name"), CASES)
def test_result_that_is_further_off_does_not_pass(traced: Traced, name: str) -> None:
    """One element, off by a thousandth of the largest: wrong, or for a mean of 4,096 numbers of both signs, not explained."""

    def change(made: np.ndarray) -> np.ndarray:
        made.reshape(-1)[3] += np.float32(1e-3 * abs(made).max())
        return made

    assert not passes(traced.compared(name, change))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "name"), CASES)
def test_no_number_never_passes(traced: Traced, name: str, value: float) -> None:
    """NaN and infinities where a number is due."""

    def change(made: np.ndarray) -> np.ndarray:
        made.reshape(-1)[-1] = value
        return made

    assert fails(traced.compared(name, change))


@pytest.mark.parametrize(("where", "name"), CASES)
def test_other_shape_or_nothing_never_passes(traced: Traced, name: str) -> None:
    """A result with an axis more, or of no elements."""
    assert fails(traced.compared(name, lambda made: made[None]))
    assert fails(traced.compared(name, lambda made: made.reshape(-1)[:0]))


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_chain_of_one_sign_is_told_from_a_dropped_product(traced: Traced) -> None:
    """The kernel's long chain loses more than the screen allows, and is recognized; without one of 768 random products it is wrong."""
    (record,) = traced.compared("bmm_of_one_sign")
    assert record.reordered or excess(record) == 0
    a, b = (x.double() for x in traced.programs["bmm"][1])

    def without_one(made: np.ndarray) -> np.ndarray:
        part = float(a[0, 0, 100] * b[0, 100, 0])
        made[0, 0, 0] -= np.float32(part)
        return made

    assert fails(traced.compared("bmm", without_one))


def test_unknown_operator_is_named(once: Once) -> None:
    """Not a KeyError, and never a comparison."""
    traced = run(once, "bounds-unknown", UNKNOWN, delegated=False)
    with pytest.raises(UnknownOperationError, match="cannot evaluate operator") as caught:
        traced.compared("tanh")
    assert "aten::tanh.out" in str(caught.value)


def test_operator_is_one_record(once: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is all that interpreter and replay need: the operator is evaluated, bounded, covered, and a wrong result is seen."""
    record = Operator(
        "aten::tanh.out", lambda args, _outputs: (args[0].double().tanh().float(),), bounds.function("aten::sigmoid")
    )
    monkeypatch.setitem(OPERATORS.records, record.name, record)
    traced = run(once, "bounds-unknown", UNKNOWN, delegated=False)
    replay = traced.replay("tanh")
    assert passes(list(replay.compared))
    assert [record.kind for record in replay.compared] == ["bound"]
    assert replay.covered == replay.computing == {"tanh": (0,)}
    assert fails(traced.compared("tanh", lambda made: made * np.float32(1 + 1e-5)))
