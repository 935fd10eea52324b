"""The comparison core: known values, and refusal before any number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from verifier.core import compare as core
from verifier.core.compare import EQUAL_DB, Array, Difference, Mismatch, compare


def difference(actual: Array, expected: Array, *, masked: bool = False) -> Difference:
    """Of arrays that can be compared."""
    made = compare(actual=actual, expected=expected, masked=masked)
    assert isinstance(made, Difference), made
    return made


def test_sqnr_of_a_known_error() -> None:
    """A tenth of the amplitude is 20 dB."""
    x = np.ones((4, 5), np.float32)
    assert difference(x * 1.1, x).sqnr_db == pytest.approx(20, abs=1e-4)
    assert difference(x, x).sqnr_db == EQUAL_DB


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        (np.zeros((2, 3), np.float32), "shape"),
        (np.zeros((2, 2), np.int64), "dtype"),
        (np.array([["a", "b"], ["c", "d"]]), "dtype"),
        (np.array([[0, 1], [np.nan, 2]], np.float32), r"1 non-finite value in actual, the first at \[1, 0\] \(nan\)"),
        (np.array([[0, 1], [2, -np.inf]], np.float32), r"first at \[1, 1\] \(-inf\)"),
        (np.full((2, 2), np.nan), r"4 non-finite values in actual, the first at \[0, 0\]"),
        (None, "no actual array"),
        (np.zeros((0, 4), np.float32), "shape"),
    ],
)
def test_refusal_before_any_metric(actual: Array | None, said: str) -> None:
    """Absence, shape, dtype, then the first non-finite position."""
    made = compare(actual=actual, expected=np.zeros((2, 2), np.float32))
    assert isinstance(made, Mismatch)
    assert re.search(said, made.reason), made.reason


def test_emptiness_is_refused() -> None:
    """Nothing compared is not agreement."""
    empty = np.zeros((0, 4), np.float32)
    made = compare(actual=empty, expected=empty)
    assert isinstance(made, Mismatch)
    assert "nothing to compare" in made.reason


@pytest.mark.parametrize("masked", [False, True])
def test_nan_on_both_sides_is_not_agreement(masked: bool) -> None:
    """The same NaN at the same place: refused, and said that it is on both sides."""
    x = np.array([1.0, np.nan, 2.0])
    made = compare(actual=x, expected=x.copy(), masked=masked)
    assert isinstance(made, Mismatch)
    assert (made.both, made.index) == (True, (1,))
    made = compare(actual=x, expected=np.array([1.0, 0.0, 2.0]), masked=masked)
    assert isinstance(made, Mismatch)
    assert not made.both


def test_infinities_of_a_mask_are_equal_only_where_asked_for() -> None:
    """-inf at the same places is a mask; of another sign, or at another place, it is not."""
    x = np.array([1.0, -np.inf, 2.0])
    assert isinstance(compare(actual=x, expected=x.copy()), Mismatch)
    made = difference(np.array([1.1, -np.inf, 2.0]), x, masked=True)
    assert made.sqnr_db == pytest.approx(10 * np.log10(5 / 0.01))
    assert made.worst().index == (0,)
    for other in (np.array([1.0, np.inf, 2.0]), np.array([-np.inf, 1.0, 2.0]), np.array([1.0, 1e30, 2.0])):
        assert isinstance(compare(actual=other, expected=x, masked=True), Mismatch)


def test_kl_is_zero_for_equal_and_known_for_shifted() -> None:
    """KL of (1/2, 1/2) against (1/4, 3/4) is ln(2) - ln(3) / 2."""
    expected = np.log(np.array([[0.5, 0.5]]))
    assert difference(expected + 3, expected).kl_nats[0] == pytest.approx(0, abs=1e-12)
    actual = np.log(np.array([[0.25, 0.75]]))
    assert difference(actual, expected).kl_nats[0] == pytest.approx(np.log(2) - np.log(3) / 2)


def test_fit_finds_one_sign_below_the_noise() -> None:
    """A flipped channel of 256 under 10 dB noise: the SQNR hides it, the gain does not."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(500, 256))
    actual = expected + rng.normal(size=expected.shape) * 10 ** (-10 / 20)
    clean = difference(actual, expected).sqnr_db
    actual[:, 17] -= 2 * expected[:, 17]
    made = difference(actual, expected)
    assert clean - made.sqnr_db < 0.8
    assert np.abs(made.channels.gain - 1).argmax() == 17
    assert made.channels.gain[17] == pytest.approx(-1, abs=0.1)
    assert np.abs(np.delete(made.channels.gain, 17) - 1).max() < 0.1


def test_fit_finds_an_offset() -> None:
    """A dropped bias is an offset."""
    rng = np.random.default_rng(1)
    expected = rng.normal(size=(500, 8))
    actual = expected + 0.1 * rng.normal(size=expected.shape)
    actual[:, 3] -= 0.5
    assert difference(actual, expected).channels.offset[3] == pytest.approx(-0.5, abs=0.03)


def test_sqnr_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many elements are looked at at a time."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((7, 11)).astype(np.float32)
    actual = expected + 1e-3 * rng.standard_normal((7, 11)).astype(np.float32)
    whole = difference(actual, expected).sqnr_db
    assert whole == pytest.approx(60, abs=2)
    monkeypatch.setattr(core, "AT_ONCE", 10)
    assert difference(actual, expected).sqnr_db == pytest.approx(whole, abs=1e-9)


def test_rows_that_are_equal_are_equal_even_if_they_are_zero() -> None:
    """One row of zeros on both sides, one at 20 dB, one whose reference is zero."""
    expected = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    actual = np.array([[0.0, 0.0], [1.1, 1.1], [0.5, 0.0]])
    assert difference(actual, expected).row_sqnr_db == pytest.approx([EQUAL_DB, 20, -EQUAL_DB])


def test_worst_error_in_the_units_of_each_element() -> None:
    """The largest error need not be the one that uses most of its bound; no error is none of a bound of zero."""
    expected = np.array([[1.0, 2.0], [3.0, 4.0]])
    actual = np.array([[1.0, 2.1], [3.0, 4.2]])
    made = difference(actual, expected)
    assert (made.worst().index, made.differing, made.share_off) == ((1, 1), 2, 0.5)
    worst = made.worst(np.array([[0.0, 0.01], [0.0, 1.0]]))
    assert (worst.index, worst.expected) == ((0, 1), 2.0)
    assert worst.error == pytest.approx(10)
    assert made.worst(np.zeros((2, 2))).error == np.inf


def test_integers_are_compared_as_they_are() -> None:
    """int8 results of an instruction."""
    made = difference(np.array([1, -128], np.int8), np.array([1, 127], np.int8))
    assert made.worst().error == 255


def test_only_compare_makes_a_difference() -> None:
    """No module takes a metric of arrays that nobody looked at."""
    root = Path(core.__file__).parents[1]
    made = [
        f"{path}:{node.lineno}"
        for path in root.rglob("*.py")
        if "embedded" not in path.parts and path.name != "compare.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Difference"
    ]
    assert made == []
