"""Intervals and tests against scipy and enumeration; fronts by their definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dlm_jax.evaluation import stats as statistics

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


@pytest.mark.parametrize("is_right", [False, True])
def test_runs_that_all_agree_are_as_one(is_right):
    once, again = np.full((1, 60), is_right), np.full((3, 60), is_right)
    interval = statistics.accuracy_interval(again)
    assert interval == statistics.accuracy_interval(once)
    assert interval[1] - interval[0] > 0.05


def test_a_ratio_of_means_is_paired():
    below = np.random.default_rng(3).exponential(size=90)
    np.testing.assert_allclose(statistics.ratio_interval(3 * below, below), (3, 3))
    above = np.random.default_rng(4).exponential(size=90)
    theirs = stats.bootstrap(
        (above, below),
        lambda x, y, axis: x.mean(axis=axis) / y.mean(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = statistics.ratio_interval(above, below)
    np.testing.assert_allclose(ours, theirs, atol=0.04)


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 40), (12, 3, 100), (0, 4, 30)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_score_interval_ends_where_the_score_test_begins_to_reject(b, c, n, confidence):
    z = stats.norm.ppf((1 + confidence) / 2)
    for end in statistics.score_interval(b, c, n, confidence):
        # The likelihood of the share q that only the second has right, by a grid.
        q = np.linspace(max(0, -end), (1 - end) / 2, 1_000_001)[1:-1]
        likelihood = b * np.log(q + end) + (n - b - c) * np.log(1 - 2 * q - end)
        likelihood += c * np.log(q)
        best = q[likelihood.argmax()]
        variance = n * (2 * best + end - end**2)
        assert abs(b - c - n * end) / np.sqrt(variance) == pytest.approx(z, rel=1e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 100))
def test_score_interval_is_antisymmetric_and_holds_the_difference(b, c, rest):
    n = b + c + rest
    if not n:
        return
    low, high = statistics.score_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert statistics.score_interval(c, b, n) == pytest.approx((-high, -low))


def test_no_unequal_pair_leaves_a_width():
    z = stats.norm.ppf(0.975)
    expected = z**2 / (100 + z**2)
    interval = statistics.score_interval(0, 0, 100)
    assert interval == pytest.approx((-expected, expected), rel=1e-6)
    same = np.arange(100) < 74
    assert statistics.compare(same, same).interval == pytest.approx(interval)


def test_runs_that_differ_alike_on_all_examples_leave_a_width():
    same = np.random.default_rng(5).random((3, 60)) < 0.7
    as_one = statistics.score_interval(0, 0, 60)
    assert statistics.difference_interval(same, same) == as_one
    assert as_one[1] - as_one[0] > 0.1
    yes, no = np.ones((3, 60), bool), np.zeros((3, 60), bool)
    assert statistics.difference_interval(yes, no) == statistics.score_interval(
        60, 0, 60
    )
    # In one of three runs on each example: a third of the pairs of a mean run.
    some = np.arange(180).reshape(3, 60) // 60 == np.arange(60) % 3
    low, high = statistics.difference_interval(some, no)
    assert (low, high) == statistics.score_interval(20, 0, 60)
    assert low < 1 / 3 < high
    # Alike on the whole, but not in any run: unequal pairs count.
    low, high = statistics.difference_interval(some, some[[1, 2, 0]])
    assert (low, high) == statistics.score_interval(20, 20, 60)
    assert low < as_one[0] < 0 < as_one[1] < high


def test_runs_that_differ_are_bootstrapped_over_examples():
    first, second = np.random.default_rng(6).random((2, 4, 90)) < [[[0.7]], [[0.5]]]
    expected = statistics.bootstrap_interval((first * 1.0 - second).mean(axis=0))
    found = statistics.difference_interval(first, second)
    np.testing.assert_allclose(found, expected)


def test_a_score_interval_covers_what_it_says():
    n, shares = 100, (0.12, 0.05, 0.83)
    truth = shares[0] - shares[1]
    covered = 0.0
    for b, c in itertools.product(range(31), range(21)):
        low, high = statistics.score_interval(b, c, n)
        if low <= truth <= high:
            covered += stats.multinomial.pmf((b, c, n - b - c), n, shares)
    assert covered == pytest.approx(0.95, abs=0.01)


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
