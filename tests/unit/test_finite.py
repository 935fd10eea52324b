"""Where NaN and infinity come from, instruction by instruction."""

from __future__ import annotations

import math

import pytest
import torch

from verifier.checks.blocks import worst_by_block
from verifier.ladder.blocks import added_error
from verifier.ladder.compared import compare_tensors
from verifier.ladder.evidence import BlockError
from verifier.ladder.finite import non_finite
from verifier.ladder.limits import excess, over
from verifier.ladder.records import Compared
from verifier.ladder.replay import clipped_share

NAN, INF = math.nan, math.inf
RECORD = Compared(0, "text_decoder", 1, "aten::add.out", 0, "bound", 3)


def test_numbers_are_nothing_to_speak_of() -> None:
    """Finite numbers whose sum overflows, and integers."""
    assert non_finite(torch.full((4,), 3e38), [], list) is None
    assert non_finite(torch.tensor([1, 2]), [], list) is None


@pytest.mark.parametrize(
    ("result", "computed", "given", "arises"),
    [
        ([1.0, NAN], [1.0, 1.0], [], True),  # 0 / 0
        ([1.0, NAN], [1.0, NAN], [], False),  # handed on
        ([1.0, NAN], [1.0, INF], [], True),  # inf - inf is made here
        ([1.0, INF], [1.0, 1.0], [], True),  # an overflow
        ([1.0, -INF], [1.0, -INF], [], False),
        ([1.0, -INF], [1.0, 1.0], [torch.tensor([0.0, -INF])], False),  # a mask
        ([1.0, -INF], [1.0, 1.0], [-INF], False),  # filled with it
        ([1.0, INF], [1.0, 1.0], [torch.tensor([1.5, INF])], True),  # a weight
        ([1.0, NAN], [1.0, 1.0], [torch.tensor([0.0, -INF])], True),  # a mask makes no NaN
    ],
)
def test_where_it_arises(result: list[float], computed: list[float], given: list[object], arises: bool) -> None:
    """NaN where no operand has it, infinity where neither an operand nor a mask has it."""
    found = non_finite(torch.tensor(result), [torch.tensor(computed)], lambda: given)
    assert found is not None
    assert (found.arises, found.index, found.count) == (arises, (1,), 1)


def _compared(actual: list[float], expected: list[float]) -> Compared:
    a, e = torch.tensor(actual), torch.tensor(expected)
    return compare_tensors(RECORD, a, e, quantum=None, bound=torch.full((3,), 1e-6), propagated=e)


def test_nan_of_both_sides_is_unknown_and_of_one_is_wrong() -> None:
    """Two NaN are not the same number; the place is kept, and no number is made up for it."""
    both = _compared([1.0, NAN, 2.0], [1.0, NAN, 2.0])
    assert (both.undefined, over(both), both.index) == (True, False, (1,))
    assert math.isnan(both.sqnr_db)
    assert both.propagated_db is None
    for pair in (([1.0, NAN, 2.0], [1.0, 0.0, 2.0]), ([1.0, 0.0, 2.0], [1.0, NAN, 2.0])):
        one = _compared(*pair)
        assert (one.undefined, over(one), excess(one)) == (False, True, INF)
        assert "non-finite value in " in one.reason


def test_infinities_of_a_mask_are_equal() -> None:
    """The rest is compared as ever."""
    assert not over(_compared([1.0, -INF, 2.0], [1.0, -INF, 2.0]))
    record = _compared([1.0, -INF, 2.1], [1.0, -INF, 2.0])
    assert (over(record), record.index, record.reason) == (True, (2,), "")


def test_nan_lies_in_no_range() -> None:
    """What converts NaN to int8 cuts it off."""
    assert clipped_share(torch.tensor([0.0, NAN, 1.0, INF]), scale=1.0, zero_point=0) == 0.5


def test_block_that_cannot_be_compared_says_why() -> None:
    """Another shape, or NaN: a reason instead of a number; the worst of several calls is not the number of another."""
    zeros = torch.zeros(())
    shape = added_error("b", "p", 0, zeros, torch.ones(2, 3), torch.ones(2, 4))
    assert (shape.reason, shape.holds) == ("shape [2, 3], expected [2, 4]", False)
    wrong = added_error("b", "p", 0, torch.ones(2, 5), torch.ones(2, 3), torch.ones(2, 3))
    assert wrong.reason.startswith("shape")
    odd = added_error("b", "p", 1, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, NAN]]), torch.tensor([[1.0, 2.5]]))
    assert odd.reason == "1 non-finite value in what the program adds, the first at [0, 1] (nan)"
    assert odd.fed
    assert not added_error("b", "p", 1, torch.tensor([NAN]), torch.tensor([NAN]), torch.tensor([NAN])).fed
    sound = BlockError("b", "p", 0, 50.0, 1)
    for errors in ([sound, odd], [odd, sound], [sound, odd, sound]):
        assert math.isnan(worst_by_block(errors)["b on "])
