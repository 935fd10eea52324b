"""What gathering measures never lets NaN, infinity, a wrong shape or nothing through as a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from verifier.core.types import Missing, Recipe
from verifier.families.samples import Answered, LayerPair
from verifier.measures.channels import measure_channels
from verifier.measures.mapping import layer_errors
from verifier.measures.vocabulary import measure_vocabulary

Array = Any


def _one(value: float) -> Callable[[Array], Array]:
    def put(array: Array) -> Array:
        made = np.array(array)
        made[1, 2] = value
        return made

    return put


POISONED = pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (_one(math.nan), "1 non-finite value in actual, the first at [1, 2] (nan)"),
        (_one(math.inf), "1 non-finite value in actual, the first at [1, 2] (inf)"),
        (lambda array: array[..., :-1], "shape [64, 63], expected [64, 64]"),
        (lambda array: None, "nothing to compare: there is no actual array"),
    ],
    ids=["nan", "inf", "shape", "nothing"],
)


def _table() -> Array:
    return np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


@POISONED
def test_activations_that_cannot_be_compared_are_named(poison: Callable[[Array], Array], reason: str) -> None:
    """No number, and why."""
    (error,) = layer_errors([LayerPair("logits", poison(_table()), _table())])
    assert (error.reason, math.isnan(error.sqnr_db)) == (reason, True)


def test_error_of_an_activation_is_where_it_is_largest() -> None:
    """One element of 4096 moved."""
    (error,) = layer_errors([LayerPair("logits", _one(9.0)(_table()), _table())])
    assert (error.index, error.reason) == ((1, 2), "")
    assert error.sqnr_db < 30


@POISONED
def test_a_table_that_cannot_be_compared_is_the_programs_fault(poison: Callable[[Array], Array], reason: str) -> None:
    """With the place; a call that did not return, with what the runtime ended with."""
    error = measure_vocabulary(poison(_table()), _table(), Recipe().embedding, "it crashed")
    assert isinstance(error, Missing)
    given = reason != "nothing to compare: there is no actual array"
    assert error.reason == (f"embeddings: {reason}" if given else "token_embedding did not return: it crashed")
    assert (error.culprit, error.accuses) == ("program", "" if given else "calls")


@POISONED
def test_channels_of_logits_that_cannot_be_compared_are_not_known(
    poison: Callable[[Array], Array], reason: str
) -> None:
    """No gain, and why."""
    hidden, head = _table()[:, :8], _table()[:, 8:16]
    answer = Answered(_table(), hidden @ head.T, hidden)
    error = measure_channels([poison(answer.logits)], [answer], head)
    assert isinstance(error, Missing)
    assert error.reason == f"not every golden answer has logits ({reason}); see logits.teacher_forced"


def test_a_changed_channel_is_found_in_the_logits() -> None:
    """Channel 5 of 8 twice as large, recovered from logits of 64 words."""
    hidden, head = _table()[:, :8], _table()[:, 8:16]
    changed = hidden * np.where(np.arange(8) == 5, 2, 1).astype(np.float32)
    error = measure_channels([changed @ head.T], [Answered(_table(), hidden @ head.T, hidden)], head)
    assert not isinstance(error, Missing)
    assert (error.channel, round(error.gain, 3), round(error.gain_change, 3)) == (5, 2.0, 1.0)
