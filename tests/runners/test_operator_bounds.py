"""Each operator on ExecuTorch's runtime against its own semantics and bound: one-node programs, inside a delegate and outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from verifier.artifact.header import read_header
from verifier.artifact.program import Artifact, read_program
from verifier.core import upstream
from verifier.interpret.errors import UnknownOperationError
from verifier.ladder.compared import Compared
from verifier.ladder.limits import excess
from verifier.ladder.replay import Replayer
from verifier.ladder.trace import CallTrace, read_trace
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call, TraceRequest

pytestmark = pytest.mark.xdist_group("runner")
Once = Callable[[str, Callable[[Path], None]], Path]


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        """The function."""
        return self.function(*given)


def _drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    made: Tensor = torch.ops.llama.custom_sdpa(q, k, v, k.shape[1] - q.shape[1], None, 0.0, True)
    return made


def _sink(rows: int, score: float) -> Tensor:
    """Keys of which the first takes nearly all of the weight of queries of ones; the others' parts are swallowed one by one."""
    keys = torch.zeros(1, rows, 2, 64)
    keys[:, 0] = score / 8
    return keys


Program = tuple[nn.Module, tuple[Tensor, ...]]
_PRODUCT = (_drawn(2, 9, 300), _drawn(2, 300, 7, seed=1))
_SWALLOWED = (_one_sided(4, 768), torch.ones(1, 768, 8))
DELEGATED: dict[str, Program] = {
    "bmm": (_Function(torch.bmm), _PRODUCT),
    "bmm_of_one_sign": (_Function(torch.bmm), _SWALLOWED),
    "softmax": (_Function(lambda x: torch.softmax(x, -1)), (_drawn(8, 1000, scale=8),)),
    "conv2d": (_layer(nn.Conv2d(3, 5, 3, stride=2, padding=1)), (_drawn(1, 3, 17, 16),)),
    "linear": (_layer(nn.Linear(400, 9)), (_drawn(3, 400),)),
    "sigmoid": (_Function(torch.sigmoid), (_between(-80, 80),)),
    "gelu": (_Function(nn.functional.gelu), (_between(-9, 9),)),
    "tanh": (_Function(torch.tanh), (_between(-12, 12),)),
    "exp": (_Function(torch.exp), (_between(-80, 80),)),
    "sqrt": (_Function(torch.sqrt), (torch.exp2(_between(-80, 80)),)),
    "rsqrt": (_Function(torch.rsqrt), (torch.exp2(_between(-80, 80)),)),
    "square": (_Function(torch.square), (_between(-9, 9),)),
    "div": (_Function(torch.div), (_drawn(16, 99), _drawn(16, 99, seed=1))),
    "add": (_Function(torch.add), (_drawn(16, 99), _drawn(16, 99, seed=1))),
    "sub": (_Function(torch.sub), (_drawn(16, 99), _drawn(16, 99, seed=1))),
    "mul": (_Function(torch.mul), (_drawn(16, 99), _drawn(16, 99, seed=1))),
    "chain": (
        _Function(lambda a, b, c: torch.bmm(torch.softmax(torch.bmm(a, b), -1), c)),
        (_drawn(2, 9, 64), _drawn(2, 64, 200, seed=1), _drawn(2, 200, 8, seed=2)),
    ),
}
PORTABLE: dict[str, Program] = {
    "bmm": (_Function(torch.bmm), _PRODUCT),
    "bmm_of_one_sign": (_Function(torch.bmm), _SWALLOWED),
    "softmax": (_Function(lambda x: torch.softmax(x, -1)), (_drawn(8, 1000, scale=8),)),
    "softmax_of_columns": (_Function(lambda x: torch.softmax(x, 1)), (_drawn(2, 300, 5, scale=8),)),
    "mean": (_Function(lambda x: x.mean(-1, keepdim=True)), (_drawn(8, 4096),)),
    "mean_of_two": (_Function(lambda x: x.mean((0, 2))), (_drawn(8, 5, 700),)),
    "layer_norm": (_layer(nn.LayerNorm(512)), (_drawn(6, 512) + 3,)),
    "rsqrt": (_Function(torch.rsqrt), (torch.exp2(_between(-80, 80)),)),
    "sigmoid": (_Function(torch.sigmoid), (_between(-80, 80),)),
    "add_scaled": (_Function(lambda a, b: torch.add(a, b, alpha=0.3)), (_drawn(16, 99), _drawn(16, 99, seed=1))),
    "add_number": (_Function(lambda a: a + 0.3), (_drawn(16, 99),)),
    "mul_number": (_Function(lambda a: a * 0.3), (_drawn(16, 99),)),
    "div": (_Function(torch.div), (_drawn(16, 99), _drawn(16, 99, seed=1))),
}
ATTENDING: dict[str, Program] = {
    "attention": (
        _Function(_attention),
        (_drawn(1, 9, 4, 64), _drawn(1, 768, 2, 64, seed=1), _drawn(1, 768, 2, 64, seed=2)),
    ),
    "attention_with_a_sink": (
        _Function(_attention),
        (torch.ones(1, 9, 4, 64), _sink(768, 17.7), torch.ones(1, 768, 2, 64)),
    ),
}
UNKNOWN: dict[str, Program] = {"tanh": (_Function(torch.tanh), (_drawn(2, 3),))}


def _exporting(programs: dict[str, Program], delegated: bool) -> Callable[[Path], None]:
    def export(folder: Path) -> None:
        from executorch.exir import to_edge_transform_and_lower

        upstream.CUSTOM_OPERATORS.resolve()
        xnnpack = upstream.XNNPACK_PARTITIONER.resolve()
        exported = {name: torch.export.export(module, given) for name, (module, given) in programs.items()}
        partitioner: Any = {name: [xnnpack()] for name in programs} if delegated else None
        edge = to_edge_transform_and_lower(
            exported, partitioner=partitioner, compile_config=upstream.EDGE_CONFIG.resolve()(_check_ir_validity=False)
        )
        with (folder / "model.pte").open("wb") as file:
            edge.to_executorch().write_to_file(file)
        calls = tuple(Call(name, tuple(x.numpy() for x in given)) for name, (_, given) in programs.items())
        bundle = Bundle(folder / "model.pte", calls, trace=TraceRequest(folder, 64 << 20))
        result = LocalRunner().run(bundle, timeout_s=600)
        assert result.outcome == "ok", result.message

    return export


@dataclass(frozen=True)
class _Spoilt:
    """A traced tensor as a faulty kernel would have left it."""

    contents: np.ndarray

    def array(self) -> np.ndarray:
        """Its contents."""
        return self.contents


def _artifact(folder: Path) -> Artifact:
    path = folder / "model.pte"
    header = read_header(path)
    storage, plans = read_program(path, header)
    return Artifact(path, "", header, {}, storage, plans)


@dataclass(frozen=True)
class Traced:
    """Programs as the runtime ran them, and how its results compare."""

    artifact: Artifact
    programs: dict[str, Program]
    traces: list[CallTrace]

    def compared(self, name: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Compared]:
        """What the replay says of one program, its last traced result changed if asked."""
        trace = dict(self.traces[list(self.programs).index(name)])
        if change is not None:
            plan = self.artifact.plans[name]
            step = next(s for s in reversed(plan.instructions) if s.index in trace)
            place = len(self.artifact.graph(plan, step).inputs) if step.kind == "delegate" else 0
            tensors: list[Any] = list(trace[step.index])
            tensors[place] = _Spoilt(change(tensors[place].array()))
            trace[step.index] = tuple(tensors)
        replayer = Replayer(self.artifact)
        replayer.call(name, [x.clone() for x in self.programs[name][1]], trace)
        return list(replayer.finish().compared)


@pytest.fixture(scope="module")
def inside(once: Once) -> Traced:
    """XNNPACK's nodes."""
    folder = once("bounds-delegated", _exporting(DELEGATED, True))
    return Traced(_artifact(folder), DELEGATED, read_trace(folder))


@pytest.fixture(scope="module")
def outside(once: Once) -> Traced:
    """ExecuTorch's own kernels."""
    folder = once("bounds-portable", _exporting(PORTABLE, False))
    return Traced(_artifact(folder), PORTABLE, read_trace(folder))


@pytest.fixture(scope="module")
def attending(once: Once) -> Traced:
    """The wheel's attention."""
    folder = once("bounds-attention", _exporting(ATTENDING, False))
    return Traced(_artifact(folder), ATTENDING, read_trace(folder))


CASES = [
    *(("inside", name) for name in DELEGATED),
    *(("outside", name) for name in PORTABLE),
    *(("attending", name) for name in ATTENDING),
]


@pytest.fixture
def traced(request: pytest.FixtureRequest, where: str) -> Traced:
    """By name of the fixture."""
    found: Traced = request.getfixturevalue(where)
    return found


def _fails(records: list[Compared]) -> bool:
    return any(excess(record) > 1 for record in records)


def _passes(records: list[Compared]) -> bool:
    return not _fails(records) and not any(record.unexplained for record in records)


@pytest.mark.parametrize(("where", "name"), CASES)
def test_sound_result_is_within_its_bound(traced: Traced, name: str) -> None:
    """The runtime's own result passes, and is decided."""
    records = traced.compared(name)
    assert records
    assert all(record.kind == "bound" for record in records)
    assert _passes(records)


@pytest.mark.parametrize(("where", "name"), CASES)
def test_result_that_is_further_off_does_not_pass(traced: Traced, name: str) -> None:
    """One element, off by a thousandth of the largest: wrong, or for a mean of 4,096 numbers of both signs, not explained."""

    def change(made: np.ndarray) -> np.ndarray:
        made.reshape(-1)[3] += np.float32(1e-3 * abs(made).max())
        return made

    assert not _passes(traced.compared(name, change))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "name"), CASES)
def test_no_number_never_passes(traced: Traced, name: str, value: float) -> None:
    """NaN and infinities where a number is due."""

    def change(made: np.ndarray) -> np.ndarray:
        made.reshape(-1)[-1] = value
        return made

    assert _fails(traced.compared(name, change))


@pytest.mark.parametrize(("where", "name"), CASES)
def test_other_shape_or_nothing_never_passes(traced: Traced, name: str) -> None:
    """A result with an axis more, or of no elements."""
    assert _fails(traced.compared(name, lambda made: made[None]))
    assert _fails(traced.compared(name, lambda made: made.reshape(-1)[:0]))


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

    assert _fails(traced.compared("bmm", without_one))


def test_unknown_operator_is_named(once: Once) -> None:
    """Not a KeyError, and never a comparison."""
    folder = once("bounds-unknown", _exporting(UNKNOWN, False))
    with pytest.raises(UnknownOperationError, match="without semantics") as caught:
        Traced(_artifact(folder), UNKNOWN, read_trace(folder)).compared("tanh")
    assert "aten::tanh.out" in str(caught.value)
