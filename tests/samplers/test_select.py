"""Selection rules against brute force, and EB against transformers' acceptance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.core.canvas import Prediction
from dlm_jax.samplers import select
from dlm_jax.samplers.entropy_bound import EntropyBound

LENGTH = 7  # Of every random row: one shape, so one compilation.
SETTINGS = settings(max_examples=100, deadline=None)

# Few values, so that ties are common; infinities are what lies outside the region.
SCORES = st.lists(
    st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 0.5, 0.5, 1.0, math.inf]),
    min_size=LENGTH,
    max_size=LENGTH,
)
SCORES_OR_NAN = st.lists(
    st.sampled_from([-math.inf, -0.0, 0.0, 0.5, math.inf, math.nan]),
    min_size=LENGTH,
    max_size=LENGTH,
)
ELIGIBLE = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH)
PROBABILITIES = st.lists(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 0.9375, 1.0]),
    min_size=LENGTH,
    max_size=LENGTH,
)
ENTROPIES = st.lists(
    st.sampled_from([0.0, 1e-9, 0.125, 0.25, 0.5, 2.0, math.inf]),
    min_size=LENGTH,
    max_size=LENGTH,
)

top_k = jax.jit(select.top_k)
best = jax.jit(select.best)
above = jax.jit(select.above)
factor = jax.jit(select.factor)
entropy_bound = jax.jit(select.entropy_bound)


def _ranked(score, is_eligible):
    """Eligible positions, best first; Python's sort is stable, so ties keep order."""
    positions = [i for i in range(len(score)) if is_eligible[i]]
    return sorted(positions, key=lambda i: -score[i])


def _mask(positions, length=LENGTH):
    return [i in positions for i in range(length)]


def _row(values):
    return jnp.asarray(values, jnp.float32)


@SETTINGS
@given(SCORES, ELIGIBLE, st.integers(-1, LENGTH + 2))
def test_top_k_takes_the_best(score, is_eligible, k):
    taken = top_k(_row(score), jnp.asarray(is_eligible), jnp.int32(k))
    assert taken.tolist() == _mask(_ranked(score, is_eligible)[: max(k, 0)])


def test_top_k_ranks_integers_too():
    score = jnp.array([3, -7, 3, 5, 0])
    taken = top_k(score, jnp.array([True, True, True, False, True]), jnp.int32(2))
    assert taken.tolist() == [True, False, True, False, False]


@SETTINGS
@given(SCORES, ELIGIBLE)
def test_best_is_one_or_none(score, is_eligible):
    taken = best(_row(score), jnp.asarray(is_eligible))
    assert taken.tolist() == _mask(_ranked(score, is_eligible)[:1])


@SETTINGS
@given(SCORES_OR_NAN, ELIGIBLE)
def test_best_is_the_first_of_the_sort_also_among_nans(score, is_eligible):
    score, is_eligible = _row(score), jnp.asarray(is_eligible)
    expected = top_k(score, is_eligible, jnp.int32(1))
    np.testing.assert_array_equal(best(score, is_eligible), expected)


@pytest.mark.parametrize(
    ("score", "is_eligible", "expected"),
    [
        ([math.nan, -math.inf, 0.5], [True, True, False], 1),
        ([-math.inf, math.nan, math.nan], [False, True, True], 1),
        ([0.5, -math.inf, -math.inf], [False, True, True], 1),
        ([-0.0, 0.0, math.nan], [True, True, True], 0),
        ([3, -7, 5], [True, True, False], 0),
        ([-(2**31), -7, 5], [True, False, False], 0),
    ],
)
def test_best_at_the_edges(score, is_eligible, expected):
    taken = select.best(jnp.asarray(score), jnp.asarray(is_eligible))
    assert taken.tolist() == _mask([expected], len(score))


def test_rules_that_need_the_best_alone_do_not_sort():
    """Over a batch, where a sort would be a program of its own in every step."""
    score, is_eligible = jnp.zeros((4, LENGTH)), jnp.ones((4, LENGTH), bool)
    for rule, sorts in ((select.best, False), (_above_half, False), (_first, True)):
        jaxpr = jax.make_jaxpr(jax.vmap(rule))(score, is_eligible).jaxpr
        names = {equation.primitive.name for _, equation in equations(jaxpr)}
        assert ("sort" in names) == sorts


def _above_half(score, is_eligible):
    return select.above(score, is_eligible, 0.5)


def _first(score, is_eligible):
    return select.top_k(score, is_eligible, 1)


@SETTINGS
@given(SCORES, ELIGIBLE, st.sampled_from([-math.inf, -0.5, 0.0, 0.5, 0.6, 2, math.inf]))
def test_above_takes_what_reaches_the_threshold_else_the_best(
    score, is_eligible, threshold
):
    taken = above(_row(score), jnp.asarray(is_eligible), jnp.float32(threshold))
    ranked = _ranked(score, is_eligible)
    passed = [i for i in ranked if score[i] >= threshold]
    assert taken.tolist() == _mask(passed or ranked[:1])


def _published_factor(confidence, ranked, bound):
    """Ranks 1 to the last one before the first failure; rank 1 always."""
    taken = ranked[:1]
    for n, i in enumerate(ranked[1:], start=2):
        if (n + 1) * (1 - confidence[i]) >= bound:
            break
        taken = [*taken, i]
    return taken


def _released_factor(confidence, ranked, bound):
    """Fast-dLLM's loop, from its description: it leaves with the index of a failure.

    Rank 1 never fails, and leaving at the last rank counts it as taken.
    """
    if not ranked:
        return []
    for rank, i in enumerate(ranked):
        if rank > 0 and confidence[i] < 1 - bound / (rank + 2):
            break
    if rank in (0, len(ranked) - 1):
        rank += 1
    return ranked[:rank]


@SETTINGS
@given(PROBABILITIES, ELIGIBLE, st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, math.inf]))
def test_factor_is_the_longest_passing_run(confidence, is_eligible, bound):
    # These fractions are exact in binary; equality is decided alike on both sides, but
    # for bound / (rank + 2), which rounds: no case of it lies at a confidence above.
    published, released = factor(
        1 - _row(confidence), jnp.asarray(is_eligible), jnp.float32(bound)
    )
    ranked = _ranked(confidence, is_eligible)
    expected = _published_factor(confidence, ranked, bound)
    assert published.tolist() == _mask(expected)
    assert released.tolist() == _mask(_released_factor(confidence, ranked, bound))


def test_factor_released_takes_all_when_only_the_last_fails():
    confidence = _row([0.9, 0.95, 0.01])
    published, released = factor(1 - confidence, jnp.ones(3, bool), jnp.float32(1))
    assert published.tolist() == [True, True, False]
    assert released.tolist() == [True, True, True]


def _brute_entropy_bound(score, entropy, is_eligible, gamma):
    """The longest prefix with a sum but the maximum of at most gamma, at least one."""
    ranked = _ranked(score, is_eligible)
    best = ranked[:1]
    for n in range(2, len(ranked) + 1):
        # Everything but the largest, summed exactly.
        rest = sorted(entropy[i] for i in ranked[:n])[:-1]
        if math.fsum(rest) <= gamma:
            best = ranked[:n]
    return best


@SETTINGS
@given(
    SCORES,
    ENTROPIES,
    ELIGIBLE,
    st.booleans(),
    st.sampled_from([0.0, 1e-9, 0.2, 0.26, 0.7, 10.0, math.inf]),
)
def test_entropy_bound_is_the_longest_prefix(
    score, entropy, is_eligible, by_entropy, gamma
):
    if by_entropy:
        score = [-h for h in entropy]
    taken = entropy_bound(
        _row(score), _row(entropy), jnp.asarray(is_eligible), jnp.float32(gamma)
    )
    # The same numbers on both sides: float32's 1e-9 is not Python's. No sum but one of
    # tiny entropies comes so near to a gamma that float32 could round it across.
    entropy = [float(h) for h in np.float32(entropy)]
    gamma = float(np.float32(gamma))
    expected = _brute_entropy_bound(score, entropy, is_eligible, gamma)
    assert taken.tolist() == _mask(expected)


@pytest.mark.parametrize(
    ("entropy", "gamma", "expected"),
    [
        # cumsum - cummax is 0 here, which would pass gamma 0.
        ([1e-9, 3.0], 0.0, [True, False]),
        ([1e-9, 3.0], 1e-9, [True, True]),
        ([1e-9, 1e-9, 3.0], 1e-9, [True, True, False]),
        ([1e-9, 1e-9, 3.0], 2e-9, [True, True, True]),
        ([0.0, 0.0, 3.0, 3.0], 0.0, [True, True, True, False]),
        ([5.0], 0.0, [True]),
        ([math.inf, 0.0], 0.0, [True, True]),
        ([math.nan, 0.0], 0.0, [False, True]),
    ],
)
def test_entropy_bound_keeps_small_entropies(entropy, gamma, expected):
    entropy = _row(entropy)
    taken = select.entropy_bound(
        -entropy, entropy, jnp.ones(len(expected), bool), jnp.float32(gamma)
    )
    assert taken.tolist() == expected


def test_entropy_bound_with_another_order_counts_the_running_maximum():
    """Large entropies first: every later one joins the rest, not the maximum."""
    entropy = _row([3.0, 0.5, 0.25, 0.125])
    score = _row([4, 3, 2, 1])
    for gamma, num_taken in [(0.4, 1), (0.5, 2), (0.74, 2), (0.75, 3), (0.875, 4)]:
        taken = entropy_bound(score, entropy, jnp.ones(4, bool), jnp.float32(gamma))
        assert taken.tolist() == _mask(range(num_taken), 4)


@SETTINGS
@given(
    st.lists(st.floats(1e-3, 11.0), min_size=LENGTH, max_size=LENGTH),
    ELIGIBLE.filter(any),
)
def test_entropy_bound_limits(entropy, is_eligible):
    entropy, is_eligible = _row(entropy), jnp.asarray(is_eligible)
    one = entropy_bound(-entropy, entropy, is_eligible, jnp.float32(0))
    assert one.sum() == 1
    all_of_them = entropy_bound(-entropy, entropy, is_eligible, jnp.float32(jnp.inf))
    np.testing.assert_array_equal(all_of_them, is_eligible)


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 8.0])
def test_entropy_bound_equals_transformers_acceptance(gamma):
    """DiffusionGemma's sampler ranks all positions by entropy, as EB does."""
    torch = pytest.importorskip("torch")
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as oracle

    rows, length, vocab_size = 64, 32, 50
    rng = np.random.default_rng(0)
    # From flat to nearly certain, so that prefixes of every length occur.
    sharpness = rng.uniform(0, 12, (rows, length, 1))
    logits = (rng.normal(size=(rows, length, vocab_size)) * sharpness).astype("float32")
    sampler = oracle.EntropyBoundSampler(
        oracle.EntropyBoundSamplerConfig(entropy_bound=gamma), length, vocab_size, 1
    )
    canvas = torch.zeros((rows, length), dtype=torch.long)
    sampler.accept_canvas(canvas, canvas + 1, torch.tensor(logits), 0)
    accepted = sampler.accepted_token_mask.numpy()

    log_prob = jax.nn.log_softmax(jnp.asarray(logits))
    entropy = -jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1)
    ours = jax.vmap(select.entropy_bound, (0, 0, 0, None))(
        -entropy, entropy, jnp.ones((rows, length), bool), jnp.float32(gamma)
    )
    # Rows whose bound is met within rounding may differ; none does with this seed.
    np.testing.assert_array_equal(ours, accepted)
    num_accepted = accepted.sum(axis=1)
    assert len(set(num_accepted.tolist())) > 5
    assert num_accepted.min() >= 1


def test_error_proxies_rank_by_the_distribution():
    """Best first: small entropy, large probability or margin of the best token."""
    prediction = Prediction(
        token=jnp.zeros(3, jnp.int32),
        log_prob=jnp.log(jnp.array([0.1, 0.2, 0.3])),  # Of drawn tokens: not looked at.
        best_log_prob=jnp.log(jnp.array([0.6, 0.5, 0.4])),
        runner_up_log_prob=jnp.log(jnp.array([0.5, 0.1, 0.2])),
        entropy=jnp.array([0.7, 0.9, 0.2]),
    )

    class EveryPosition:
        is_eligible = jnp.ones(3, bool)

    for proxy, best in [("entropy", 2), ("confidence", 0), ("margin", 1)]:
        sampler = EntropyBound(gamma=jnp.float32(0), error_proxy=proxy)
        _, decision = sampler.step(None, (), EveryPosition, prediction)
        assert decision.commit.tolist() == _mask([best], 3), proxy
