"""Intervals and tests against scipy and enumeration; fronts by their definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dlm_jax import statistics

points = st.lists(
    st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=1, max_size=12
)


def test_one_run_gives_wilsons_interval():
    low, high = statistics.accuracy_interval(np.arange(50)[None] < 47)
    # Wilson's formula, z = 1.96.
    z, n, p = stats.norm.ppf(0.975), 50, 0.94
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose((low, high), (centre - half, centre + half))


def test_repeated_runs_do_not_narrow_the_interval():
    once = np.random.default_rng(0).random((1, 200)) < 0.8
    again = np.repeat(once, 5, axis=0)
    low, high = statistics.accuracy_interval(again)
    np.testing.assert_allclose(
        (low, high), statistics.accuracy_interval(once), atol=0.015
    )


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=80)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose(statistics.bootstrap_interval(values), theirs, atol=0.02)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 9), (5, 5), (0, 6)])
def test_mcnemar_is_exact(b, c):
    first = np.array([1] * b + [0] * c + [1] * 7 + [0] * 4, bool)
    second = np.array([0] * b + [1] * c + [1] * 7 + [0] * 4, bool)
    result = statistics.compare(first, second)
    assert (result.num_first_only, result.num_second_only) == (b, c)
    assert result.difference == pytest.approx((b - c) / (b + c + 11))
    assert result.interval[0] <= result.difference <= result.interval[1]
    # All ways in which the unequal examples could have fallen.
    far = [
        abs(2 * sum(way) - b - c) >= abs(b - c)
        for way in itertools.product((0, 1), repeat=b + c)
    ]
    assert result.p_value == pytest.approx(np.mean(far))


@given(points)
def test_front_holds_what_nothing_beats(points):
    cost, gain = map(list, zip(*points, strict=True))
    front = statistics.pareto_front(cost, gain)
    for i in range(len(points)):
        is_beaten = any(
            cost[j] <= cost[i] and gain[j] >= gain[i] and points[j] != points[i]
            for j in range(len(points))
        )
        assert (points[i] in [points[j] for j in front]) == (not is_beaten)
    assert sorted(cost[j] for j in front) == [cost[j] for j in front]


@given(points)
def test_area_is_the_mean_of_the_best_that_can_be_had(points):
    cost, gain = map(list, zip(*points, strict=True))
    area = statistics.area_under_front(cost, gain, 2.0, 50.0)
    budgets = np.exp(np.linspace(np.log(2), np.log(50), 4001))
    best = [max((g for c, g in points if c <= b), default=0.0) for b in budgets]
    assert area == pytest.approx(np.mean(best), abs=2e-3)
