"""Operators that move values, and those that look them up: equal on ExecuTorch's runtime, inside a delegate and outside."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.runners.one_node import Function, Once, Program, Traced, drawn, fails, passes, run
from tests.runners.test_operator_bounds import ATTENDING, DELEGATED, PORTABLE
from verifier.backends.calls import graph_of
from verifier.backends.xnnpack.nodes import NODES
from verifier.operators.registry import OPERATORS

pytestmark = pytest.mark.xdist_group("runner")


class _Kept(nn.Module):
    """A buffer that is overwritten, as a cache is without custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """The buffer as it was before."""
        before = self.kept * 2.0
        self.kept.copy_(x)
        return before


def _with_rows(x: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    x = x.clone()
    x[:, ids] = rows
    return x


def _cached(rows: Tensor, cache: Tensor) -> Tensor:
    cache = cache * 2.0
    torch.ops.llama.update_cache(rows, cache, 3)
    return cache * 3.0


def _looked_up(operator: str, table: Tensor, scales: Tensor, ids: Tensor) -> Tensor:
    found: Tensor = getattr(torch.ops.quantized_decomposed, operator).dtype(
        table, scales, None, -128, 127, ids, dtype=torch.float32
    )
    return found


def _as_stored(operator: str, table: Tensor, scales: Tensor, ids: Tensor) -> Tensor:
    """Rows in the dtype of the scales."""
    rows: Tensor = getattr(torch.ops.quantized_decomposed, operator)(table, scales, None, -128, 127, ids)
    return rows


_X, _IDS = drawn(3, 4, 5), torch.tensor([2, 0, 1])
_TABLE, _SCALES = torch.arange(-64, 64, dtype=torch.int8).reshape(8, 16), drawn(8, 2).abs()
MOVING: dict[str, Program] = {
    "cat": (Function(lambda a, b: torch.cat([a, b], 1)), (_X, _X + 1)),
    "clamp": (Function(lambda x: torch.clamp(x, -0.5, 0.25)), (_X,)),
    "pad": (Function(lambda x: nn.functional.pad(x, (1, 2, 0, 1), value=3.0)), (_X,)),
    "expand": (Function(lambda x: x.expand(3, 4, 5)), (_X[:, :1],)),
    "full_like": (Function(lambda x: torch.full_like(x, 0.1)), (_X,)),
    "index": (Function(lambda x, ids: x[:, ids]), (_X, _IDS)),
    "index_put": (Function(_with_rows), (_X, _IDS, _X[:, :3] + 1)),
    "permute": (Function(lambda x: x.permute(2, 0, 1)), (_X,)),
    "select": (Function(lambda x: x.select(1, 2)), (_X,)),
    "slice": (Function(lambda x: x[:, 1:4:2]), (_X,)),
    "squeeze": (Function(lambda x: x.squeeze(1) + 0.5), (_X[:, :1],)),
    "transpose": (Function(lambda x: x.transpose(0, 2)), (_X,)),
    "unsqueeze": (Function(lambda x: x.unsqueeze(1) + 0.5), (_X,)),
    "where": (Function(torch.where), (_X > 0, _X, -_X)),
    "where_number": (Function(lambda mask, x: torch.where(mask, x, 0.1)), (_X > 0, _X)),
    "eq": (Function(lambda x: x == 2), (_IDS,)),
    **{name: (Function(getattr(torch, name)), (_X, _X.flip(0))) for name in ("le", "lt", "ge", "gt")},
    "eq_tensor": (Function(torch.eq), (_X, _X.flip(0))),
    "negated": (Function(torch.neg), (_X,)),
    "flip": (Function(lambda x: torch.flip(x, (0, 2))), (_X,)),
    "not": (Function(torch.logical_not), (_X > 0,)),
    "any": (Function(lambda x: torch.any(x, 1)), (_X > 0.5,)),
    "arange": (Function(lambda x: torch.arange(0.5, 4.0, 0.3) * x), (drawn(1),)),
    "embedding": (Function(lambda ids: nn.functional.embedding(ids, _X[0])), (_IDS,)),
    "embedding_byte": (Function(partial(_looked_up, "embedding_byte")), (_TABLE, _SCALES, _IDS)),
    "embedding_4bit": (Function(partial(_looked_up, "embedding_4bit")), (_TABLE.view(torch.uint8), _SCALES, _IDS)),
    "embedding_byte_as_stored": (Function(partial(_as_stored, "embedding_byte")), (_TABLE, _SCALES, _IDS)),
    "embedding_4bit_as_stored": (
        Function(partial(_as_stored, "embedding_4bit")),
        (_TABLE.view(torch.uint8), _SCALES, _IDS),
    ),
    "to_integers": (Function(lambda x: x.to(torch.int32)), (_X * 9,)),
    "clone": (Function(lambda x: x.clone()), (_X,)),
    "alias": (Function(torch.ops.aten.alias_copy.default), (_X,)),
    "add": (Function(torch.add), (_X, _X + 1)),
    "add_scalar": (Function(lambda x: torch.ops.aten.add.Scalar(x, 0.3)), (_X,)),
    "mul_scalar": (Function(lambda x: torch.ops.aten.mul.Scalar(x, 0.3)), (_X,)),
    "sub": (Function(torch.sub), (_X, _X + 1)),
    "mul": (Function(torch.mul), (_X, _X + 1)),
    "copy": (_Kept(), (drawn(3, 4),)),
    "update_cache": (Function(_cached), (drawn(1, 2, 2, 8), drawn(1, 9, 2, 8, seed=1))),
}
MOVING_INSIDE: dict[str, Program] = {
    "negate": (Function(lambda x: -x), (_X,)),
    "transpose": (Function(lambda x: torch.exp(x.permute(2, 0, 1))), (_X,)),
    "clamp": (Function(lambda x: torch.clamp(x, -0.5, 0.25)), (_X,)),
    "reshape": (Function(lambda x: torch.exp(x.reshape(4, 15))), (_X,)),
    "slice": (Function(lambda x: torch.exp(x[:, 1:3])), (_X,)),
    **{f"cat{n}": (Function(lambda *x: torch.cat(x, 1)), tuple(_X + i for i in range(n))) for n in range(2, 6)},
}


@pytest.fixture(scope="module")
def moving(once: Once) -> Traced:
    """Kernels that move, pick and compare, and those that look up."""
    return run(once, "moves-portable", MOVING, delegated=False)


@pytest.fixture(scope="module")
def moving_inside(once: Once) -> Traced:
    """Nodes that move values."""
    return run(once, "moves-delegated", MOVING_INSIDE, delegated=True)


MOVES = [*(("moving", name) for name in MOVING), *(("moving_inside", name) for name in MOVING_INSIDE)]


@pytest.mark.parametrize(("where", "name"), MOVES)
def test_moved_values_are_the_same(traced: Traced, name: str) -> None:
    """What is moved or compared is equal, a looked-up or computed number within its bound; with one element changed it is wrong."""
    records = traced.compared(name)
    assert records
    assert passes(records)

    def change(made: np.ndarray) -> np.ndarray:
        flat = made.reshape(-1)
        flat[-1] = ~flat[-1] if made.dtype == np.bool_ else flat[-1] + 1
        return made

    assert fails(traced.compared(name, change))


def test_every_record_has_a_program_of_its_own(once: Once, moving: Traced, moving_inside: Traced) -> None:
    """Those that the exporter writes as another operator, and 4-bit linears (test_linear_order.py), are the only ones without."""
    traced = [
        moving,
        moving_inside,
        run(once, "bounds-delegated", DELEGATED, delegated=True),
        run(once, "bounds-portable", PORTABLE, delegated=False),
        run(once, "bounds-attention", ATTENDING, delegated=False),
    ]
    met: set[str] = set()
    for artifact in (one.artifact for one in traced):
        for plan in artifact.plans.values():
            for step in plan.instructions:
                nodes = graph_of(artifact, plan, step).nodes if step.kind == "delegate" else ()
                met |= {step.name, *(node.kind for node in nodes)}
    rewritten = {"aten::clone.out", "aten::_to_copy.out", "aten::transpose_copy.int_out", "aten::view_copy.out"}
    assert {record.name for record in OPERATORS if record.computes} - met == rewritten
    assert {record.name for record in NODES} - met == {"XNNConvert"}
