"""Comparing outputs: the tolerance depends on the type, and number, shape, type, NaN and infinity must be equal."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon.jobs.compare import QUANTISED_TOLERANCE, TOLERANCES, Difference, Tolerance, difference, worst

NAN, INF = float("nan"), float("inf")


def pair(ours: list[float], theirs: list[float], dtype: str = "float32") -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.array(ours, dtype)], [np.array(theirs, dtype)]


def test_in_closed_form() -> None:
    ours, theirs = [np.array([1.0, 2.0]), np.array([[4.0]])], [np.array([1.5, 2.0]), np.array([[-5.0]])]
    found = difference(ours, theirs)
    assert (found.absolute, found.relative) == (9.0, 9.0 / 5.0)
    assert "output 0" in found.fault
    assert "output 1" in found.fault


def test_an_output_is_measured_by_its_own_largest_number() -> None:
    """A large output does not hide that a small one is wrong."""
    assert not difference([np.ones(3), np.full(3, 1e6)], [np.full(3, 1.1), np.full(3, 1e6)]).agrees


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pair([NAN, 1], [0, 1])),
        (pair([0, 1], [NAN, 1])),
        (pair([INF, 1], [-INF, 1])),
        (pair([INF, 1], [1, 1])),
        ([np.zeros(2, "float32")], [np.zeros((2, 1), "float32")]),
        ([np.zeros(2, "float32")], [np.zeros(2, "float64")]),
        ([np.zeros(2), np.zeros(2)], [np.zeros(2)]),
        ([], [np.zeros(2)]),
        (pair([1, 0], [1, 1], "bool")),
        (pair([3, 4], [3, 5], "int64")),
    ],
)
def test_what_is_wrong_whatever_the_tolerance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    found = difference(ours, theirs, Tolerance(1.0))
    assert found.fault
    assert not found.agrees


def test_nan_and_infinity_in_the_same_places_agree() -> None:
    assert difference(*pair([NAN, INF, -INF, 1], [NAN, INF, -INF, 1])).agrees
    assert difference([np.zeros((0, 3))], [np.zeros((0, 3))]).agrees


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rounding_of_each_type_agrees_and_ten_times_the_tolerance_does_not(dtype: str) -> None:
    rng = np.random.default_rng(0)
    right = rng.standard_normal(1000)
    rounded = right.astype(dtype)
    tolerance = Tolerance(TOLERANCES[dtype])
    assert difference([rounded], [np.nextafter(rounded, np.array(9, dtype))], tolerance).agrees
    wrong = rounded.copy()
    wrong[7] += 10 * TOLERANCES[dtype] * np.abs(right).max()
    assert not difference([wrong], [rounded], tolerance).agrees


def test_a_few_integers_of_a_quantised_network_may_be_one_step_off() -> None:
    quantised = Tolerance(QUANTISED_TOLERANCE, quantised=True)
    theirs = np.arange(100, dtype="uint8")
    few, many, far = theirs.copy(), theirs + np.uint8(1), theirs.copy()
    few[[0, 50]] += 1
    far[3] += 2
    assert difference([few], [theirs], quantised).agrees
    assert not difference([few], [theirs]).agrees
    assert not difference([many], [theirs], quantised).agrees
    assert not difference([far], [theirs], quantised).agrees


def test_sums_that_cancel_leave_rounding_errors() -> None:
    assert difference(*pair([3e-8, -2e-8], [0, 0])).agrees
    assert not difference(*pair([3e-5, -2e-5], [0, 0])).agrees


def test_the_worst_of_several() -> None:
    assert worst([]) == Difference()
    found = worst([Difference(1.0, 0.5), Difference(0.5, 0.7, "b"), Difference(0.1, 0.1, "b")])
    assert found == Difference(1.0, 0.7, "b")
