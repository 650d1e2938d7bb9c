"""Statistics of paired runs against values from tables and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.paired_runs import (
    bootstrap_interval,
    iterations_to_target,
    paired_difference,
    student_interval,
)

VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=9)


@pytest.mark.parametrize(
    ("count", "level", "quantile"),
    [  # from printed tables of Student's distribution
        (2, 0.95, 12.706),
        (3, 0.95, 4.303),
        (4, 0.9, 2.353),
        (5, 0.95, 2.776),
        (11, 0.99, 3.169),
        (121, 0.95, 1.980),
    ],
)
def test_students_interval_has_the_quantiles_of_the_tables(count, level, quantile):
    values = np.arange(count, dtype=np.float64)
    low, high = student_interval(values, level=level)
    error = values.std(ddof=1) / math.sqrt(count)
    assert (high - low) / 2 / error == pytest.approx(quantile, abs=6e-4)
    assert (low + high) / 2 == pytest.approx(values.mean())


def test_a_bootstrap_of_three_values_lists_all_27_resamples():
    # Means of the 27 resamples of (0, 3, 6): 0 once, 6 once, 1 and 5 three times, and so on.
    # 1/27 of them on either side is cut at level 25/27.
    low, high = bootstrap_interval([0.0, 3.0, 6.0], level=25 / 27)
    assert 0.0 <= low <= 1.0
    assert 5.0 <= high <= 6.0
    assert low + high == pytest.approx(6.0)


def test_a_bootstrap_of_many_values_is_near_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = bootstrap_interval(values, resamples=20_000)
    reach = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


@given(VALUES, st.floats(-3, 3))
def test_an_interval_covers_the_mean_moves_with_it_and_stays_within_the_range(values, shift):
    low, high = bootstrap_interval(values, resamples=500)
    assert min(values) - 1e-9 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= max(values) + 1e-9
    moved = bootstrap_interval(np.array(values) + shift, resamples=500)
    np.testing.assert_allclose(moved, (low + shift, high + shift), atol=1e-9)


def test_what_both_runs_of_a_pair_share_cancels():
    seeds = np.array([0.0, 10.0, -4.0, 3.0])
    result = paired_difference(seeds - [0.1, 0.2, 0.1, 0.2], seeds)
    assert result.count == 4
    assert result.num_lower == 4
    assert result.mean == pytest.approx(-0.15)
    assert result.standard_error == pytest.approx(0.0288675, abs=1e-6)
    assert result.bootstrap is not None
    assert result.bootstrap == pytest.approx((-0.2, -0.1))  # one resample in 16 has this mean


def test_one_pair_has_a_difference_and_no_interval():
    result = paired_difference([1.0], [1.5])
    assert (result.count, result.mean, result.num_lower) == (1, -0.5, 1)
    assert result.standard_error is result.bootstrap is result.student is None


@pytest.mark.parametrize(
    ("candidate", "baseline"),
    [([], []), ([1.0, 2.0], [1.0]), ([math.nan], [1.0]), ([[1.0]], [[1.0]])],
)
def test_pairs_that_are_none_are_refused(candidate, baseline):
    with pytest.raises(ValueError, match="pairs"):
        paired_difference(candidate, baseline)


@pytest.mark.parametrize(
    ("target", "iterations"),
    [(5.0, 10.0), (4.0, 10.0), (3.0, 15.0), (2.0, 20.0), (1.5, 30.0), (0.9, None)],
)
def test_a_target_between_two_points_is_interpolated(target, iterations):
    # The point at 20 is reached first; that the curve rises again does not matter.
    found = iterations_to_target([10, 20, 30, 40], [4.0, 2.0, 1.5, 1.6], target)
    assert found == iterations


def test_points_that_are_not_finite_are_left_out():
    assert iterations_to_target([1, 2, 3], [4.0, math.nan, 2.0], 3.0) == 2.0
    assert iterations_to_target([1], [math.nan], 3.0) is None


@pytest.mark.parametrize(("iterations", "values"), [([1, 1], [2, 1]), ([1, 2], [1]), (1, 1)])
def test_a_curve_without_order_is_refused(iterations, values):
    with pytest.raises(ValueError, match="curve"):
        iterations_to_target(iterations, values, 1.0)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_the_interpolated_curve_has_the_target_at_the_iteration_found(drops, share):
    curve = 10 - np.cumsum(drops)
    places = np.arange(1, curve.size + 1) * 7.0
    target = curve[0] + share * (curve[-1] - curve[0])
    found = iterations_to_target(places, curve, target + 1e-12)
    assert found is not None
    assert np.interp(found, places, curve) == pytest.approx(target, abs=1e-9)
