"""What lowering shares and gives back: tensors, never a program's structure."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from verifier.core import upstream
from verifier.export.lean_partition import RELEASED_BYTES, _shared_copy, lean_partitioning, release


def _program(**tensors: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(state_dict=tensors, constants={})


def test_release_empties_large_tensors_that_nothing_else_uses() -> None:
    """Small ones, and those that another program holds or views, stay."""
    count = RELEASED_BYTES // 4
    used, shared, small = torch.ones(count), torch.ones(count), torch.ones(10)
    program = _program(used=used, shared=shared, small=small)
    assert release(program, but=_program(view=shared.view(2, -1))) == RELEASED_BYTES
    assert used.untyped_storage().nbytes() == 0
    assert float(shared.sum()) == count
    assert float(small.sum()) == 10
    assert release(program, but=_program()) == RELEASED_BYTES


def test_copies_share_tensors_and_nothing_else() -> None:
    """A backend may change the graph of its copy."""
    program = torch.export.export(nn.Linear(3, 4), (torch.ones(2, 3),))
    made = _shared_copy(program)
    assert made.graph_module is not program.graph_module
    assert made.state_dict is not program.state_dict
    assert made.state_dict["weight"] is program.state_dict["weight"]
    del made.state_dict["weight"]
    assert "weight" in program.state_dict


def test_upstream_is_as_it_was_afterwards() -> None:
    """Nothing stays replaced, also after an error."""
    backend_api, lowered_backend_module = upstream.PARTITIONING.resolve(), upstream.LOWERED_MODULES.resolve()
    names = upstream.PARTITIONING.uses
    before = [getattr(backend_api, name) for name in names], lowered_backend_module.legalize_graph
    try:
        with lean_partitioning():
            assert [getattr(backend_api, name) for name in names] != before[0]
            raise RuntimeError
    except RuntimeError:
        pass
    assert ([getattr(backend_api, name) for name in names], lowered_backend_module.legalize_graph) == before
