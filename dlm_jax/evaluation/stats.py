"""Confidence intervals, paired tests and Pareto fronts."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import root_scalar
from scipy.stats import binomtest, norm

_NUM_RESAMPLES = 10_000


def accuracy_interval(
    is_correct: Bool[np.ndarray, "s n"], confidence: float = 0.95
) -> tuple[float, float]:
    """An interval of the accuracy on examples like these.

    With one run per example it is Wilson's. Several runs of the same example are not
    independent, so that of several runs is the percentile bootstrap over examples. If
    all of them are correct, or none, it has no width: then Wilson's, as of one run.

    Args:
      is_correct: of s runs of n examples.
      confidence: that the interval holds the true accuracy.
    """
    num_runs, num_examples = is_correct.shape
    if num_runs == 1 or is_correct.all() or not is_correct.any():
        test = binomtest(int(is_correct[0].sum()), num_examples)
        low, high = test.proportion_ci(confidence, method="wilson")
        return float(low), float(high)
    return bootstrap_interval(is_correct.mean(axis=0), confidence)


def bootstrap_interval(
    values: Float[np.ndarray, "n"], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The percentile-bootstrap interval of a mean over examples."""
    return ratio_interval(values, np.ones(len(values)), confidence, seed)


def ratio_interval(
    above: Float[np.ndarray, "n"],
    below: Float[np.ndarray, "n"],
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile-bootstrap interval of mean(above) / mean(below), paired."""
    rng = np.random.default_rng(seed)
    n = len(above)
    # How often each example is drawn; a resample's sum is then one product.
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES)
    tail = (1 - confidence) / 2
    ratios = (counts @ above) / (counts @ below)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def score_interval(
    num_first_only: float, num_second_only: float, num: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Tango's score interval of a difference of paired proportions.

    The differences that a score test does not reject (Statistics in Medicine 17, 1998,
    891-908). Few or no unequal pairs leave it the width that they deserve: none of n
    give z^2 / (n + z^2) to either side, where the bootstrap gives 0.

    Args:
      num_first_only: pairs of which only the first is correct; may be a mean of counts.
      num_second_only: pairs of which only the second is correct.
      num: pairs in all.
      confidence: that the interval holds the true difference.
    """
    b, c, n = num_first_only, num_second_only, num
    z = norm.ppf((1 + confidence) / 2)

    def score(difference: float) -> float:
        """Of this difference, standardised; falls as it grows."""
        surplus = b - c - n * difference
        if surplus == 0:
            return 0.0
        # The most likely share of pairs of which only the second is correct.
        linear = (2 * n - b + c) * difference - b - c
        constant = c * difference * (1 - difference)
        share = (np.sqrt(linear**2 + 8 * n * constant) - linear) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return (
            surplus / np.sqrt(variance) if variance > 0 else np.sign(surplus) * np.inf
        )

    found = (b - c) / n
    end = 1 - 1e-12
    low, high = -1.0, 1.0
    if found > -end and score(-end) > z:
        low = root_scalar(lambda x: score(x) - z, bracket=(-end, found)).root
    if found < end and score(end) < -z:
        high = root_scalar(lambda x: score(x) + z, bracket=(found, end)).root
    return float(low), float(high)


def difference_interval(
    first: Bool[np.ndarray, "s n"],
    second: Bool[np.ndarray, "s n"],
    confidence: float = 0.95,
) -> tuple[float, float]:
    """An interval of the difference of two samplers' accuracies, from several runs.

    It is the percentile bootstrap over examples. If the two differ by the same on all
    of them (not at all, say), it has no width: then the score interval, as of one run
    with the mean run's unequal pairs. What one run tells is in `compare`.

    Args:
      first: which examples the first has correct, in s runs.
      second: which the second has, in runs with the same random numbers.
      confidence: that the interval holds the true difference.
    """
    num_runs, num_examples = first.shape
    # In whole numbers, which can be equal.
    surplus = first.sum(axis=0) - second.sum(axis=0)
    if (surplus == surplus[0]).all():
        only_first, only_second = first & ~second, second & ~first
        counts = [float(only.sum() / num_runs) for only in (only_first, only_second)]
        return score_interval(counts[0], counts[1], num_examples, confidence)
    return bootstrap_interval(surplus / num_runs, confidence)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two samplers on the same examples and random numbers.

    Attributes:
      difference: accuracy of the first minus accuracy of the second.
      interval: of the difference; the smallest one that holds both the percentile
        bootstrap's over examples and the score interval.
      num_first_only: examples that only the first has correct.
      num_second_only: examples that only the second has correct.
      p_value: McNemar's exact test that these two are equally likely.
    """

    difference: float
    interval: tuple[float, float]
    num_first_only: int
    num_second_only: int
    p_value: float


def compare(
    first: Bool[np.ndarray, "n"],
    second: Bool[np.ndarray, "n"],
    confidence: float = 0.95,
) -> Comparison:
    """Compares two samplers, example by example.

    Args:
      first: which examples the first has correct.
      second: which the second has.
      confidence: that the interval holds the true difference.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    num_unequal = only_first + only_second
    p_value = binomtest(only_first, num_unequal).pvalue if num_unequal else 1.0
    difference = first.astype(float) - second.astype(float)
    low, high = bootstrap_interval(difference, confidence)
    lowest, highest = score_interval(only_first, only_second, len(first), confidence)
    return Comparison(
        difference=float(difference.mean()),
        interval=(min(low, lowest), max(high, highest)),
        num_first_only=only_first,
        num_second_only=only_second,
        p_value=float(p_value),
    )


def pareto_front(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Indices of the points on the Pareto front, by cost."""
    front: list[int] = []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i])):
        if not front or gain[i] > gain[front[-1]]:
            front.append(i)
    return front


def area_under_front(
    cost: Sequence[float], gain: Sequence[float], low: float, high: float
) -> float:
    """The mean gain over costs that are spread uniformly in logarithm.

    At each cost counts the best point that costs no more; where none does, 0. It lies
    between 0 and the best gain, and a fine grid of thresholds changes it little.

    Args:
      cost: of the points, above 0.
      gain: of the points.
      low: where costs begin.
      high: where they end.
    """
    area, edge, best = 0.0, np.log(low), 0.0
    for i in pareto_front(cost, gain):
        at = np.clip(np.log(cost[i]), np.log(low), np.log(high))
        area += best * (at - edge)
        edge, best = at, gain[i] if cost[i] <= high else best
    return float((area + best * (np.log(high) - edge)) / np.log(high / low))
