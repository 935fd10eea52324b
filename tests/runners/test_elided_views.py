"""ExecuTorch leaves out a view whose shape is static: what reads it reads its source's memory, which nobody wrote under that number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.runners.one_node import Function, Once, Program, Traced, drawn, fails, passes, run
from verifier.audit.lifetimes import find_overlaps, lifetimes
from verifier.interpret.machine import MethodState

pytestmark = pytest.mark.xdist_group("runner")
_X = drawn(3, 20)


def _twice(x: Tensor) -> Tensor:
    """Its memory may be given away after the first use, unless the view counts as one."""
    first = torch.sigmoid(x) * 3.0
    return first[:1, :15] + x.reshape(4, 15)


SHAPED: dict[str, Program] = {
    "of_an_input": (Function(lambda x: x.reshape(4, 15) + 0.5), (_X,)),
    "of_a_result": (Function(lambda x: torch.sigmoid((x * 2.0).reshape(4, 15))), (_X,)),
    "of_a_view": (Function(lambda x: torch.sigmoid((x * 2.0).reshape(60).reshape(4, 15))), (_X,)),
    "of_what_is_used_before": (Function(lambda x: _twice(x * 2.0)), (_X,)),
    "as_an_output": (Function(lambda x: ((x * 2.0).reshape(4, 15), x + 1.0)), (_X,)),
    "one_after_the_other": (Function(lambda x: torch.sigmoid(torch.sigmoid(x.reshape(4, 15)).reshape(5, 12))), (_X,)),
}


@pytest.fixture(scope="module")
def shaped(once: Once) -> Traced:
    """Kernels that read elided views."""
    return run(once, "views-portable", SHAPED, delegated=False)


@pytest.mark.parametrize("name", SHAPED)
def test_sound_results_pass_and_wrong_ones_do_not(shaped: Traced, name: str) -> None:
    """Evaluated on the source's contents in the view's shape."""
    records = shaped.compared(name)
    assert records
    assert passes(records)

    def change(made: np.ndarray) -> np.ndarray:
        made.reshape(-1)[-1] += 1
        return made

    assert fails(shaped.compared(name, change))


@pytest.mark.parametrize("name", SHAPED)
def test_memory_is_shared_by_design(shaped: Traced, name: str) -> None:
    """The view is a use of its source, no cache that lives always, and no overlap."""
    plan = shaped.artifact.plans[name]
    assert find_overlaps(plan) == []
    assert not any(one.permanent and one.value not in plan.inputs for one in lifetimes(plan))


@pytest.mark.parametrize("name", SHAPED)
def test_these_programs_have_such_views(shaped: Traced, name: str) -> None:
    """Otherwise the tests above would prove nothing. What is an output is copied."""
    assert bool(MethodState(shaped.artifact, shaped.artifact.plans[name]).views) == (name != "as_an_output")
