"""Scores to masks: which eligible positions of one row to take.

Every rule takes arrays over the l positions of a row and returns boolean masks that are
subsets of `is_eligible`. Ties go to the lowest index. `lax.top_k` would need a
static k; ranks compared with a traced count do not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


def order(
    score: Num[Array, "l"], is_eligible: Bool[Array, "l"]
) -> tuple[Int[Array, "l"], Bool[Array, "l"]]:
    """Sorts positions from the best to the worst score, the ineligible ones last.

    Args:
      score: number [l]; the higher, the better.
      is_eligible: bool [l]; positions that may be taken.

    Returns:
      int32 [l], the positions in that order; and bool [l], whether the position at
      each rank is eligible.
    """
    index = jnp.arange(score.shape[0], dtype=jnp.int32)
    is_last, _, positions = jax.lax.sort(
        (~is_eligible, -score, index), num_keys=2, is_stable=True
    )
    return positions, ~is_last


def leading(positions: Int[Array, "l"], is_taken: Bool[Array, "l"]) -> Bool[Array, "l"]:
    """Brings a mask over ranks back to positions.

    Args:
      positions: int32 [l]; the position at each rank, of `order`.
      is_taken: bool [l]; whether each rank is taken.

    Returns:
      bool [l]; whether each position is taken.
    """
    return jnp.zeros_like(is_taken).at[positions].set(is_taken, unique_indices=True)


def top_k(
    score: Num[Array, "l"], is_eligible: Bool[Array, "l"], k: int | Int[Array, ""]
) -> Bool[Array, "l"]:
    """Takes the k eligible positions of highest score, or all if there are fewer.

    Args:
      score: number [l]; the higher, the better.
      is_eligible: bool [l]; positions that may be taken.
      k: how many; an int, or int32 [].

    Returns:
      bool [l]; the positions taken.

    >>> score = jnp.array([0.2, 0.9, 0.9, 0.5])
    >>> is_eligible = jnp.array([True, True, False, True])
    >>> top_k(score, is_eligible, 2).tolist()
    [False, True, False, True]
    """
    positions, is_ranked = order(score, is_eligible)
    return leading(positions, is_ranked & (jnp.arange(score.shape[0]) < k))


def doubt(log_prob: Float[Array, "*l"]) -> Float[Array, "*l"]:
    """Computes 1 - p of log-probabilities, with all its digits where p is nearly 1.

    Trained models are nearly certain most of the time. There float32 has few different
    probabilities, but many different doubts. A doubt is best when it is low: where a
    function of this module takes a score, give it minus the doubt.

    Args:
      log_prob: float [...]; natural logarithms of p.

    Returns:
      float [...]; 1 - p, of the same dtype.
    """
    return -jnp.expm1(log_prob)


def best(score: Num[Array, "l"], is_eligible: Bool[Array, "l"]) -> Bool[Array, "l"]:
    """Takes the eligible position of highest score; none if nothing is eligible.

    The first of `order`, by comparisons alone: a sort would take a kernel of its own.
    A NaN is worse than every number, as in a sort.

    Args:
      score: number [l]; the higher, the better.
      is_eligible: bool [l]; positions that may be taken.

    Returns:
      bool [l]; True at one position at most.

    >>> best(jnp.array([0.2, 0.9, 0.7]), jnp.array([True, False, True])).tolist()
    [False, False, True]
    """
    is_number = is_eligible & ~jnp.isnan(score)
    highest = jnp.max(jnp.where(is_number, score, _lowest(score.dtype)))
    is_best = is_number & (score == highest)
    is_best = jnp.where(jnp.any(is_number), is_best, is_eligible)
    # The first of those that are equal.
    return is_best & (jnp.arange(score.shape[0]) == jnp.argmax(is_best))


def _lowest(dtype: jnp.dtype) -> int | float:
    """Not above any number of the dtype."""
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return -jnp.inf if is_real else jnp.iinfo(dtype).min


def above(
    score: Num[Array, "l"],
    is_eligible: Bool[Array, "l"],
    threshold: float | Num[Array, ""],
) -> Bool[Array, "l"]:
    """Takes the eligible positions with score >= threshold, else the best one.

    The threshold rule of Fast-dLLM (arXiv:2505.22618, section 3.3).

    Args:
      score: number [l]; the higher, the better.
      is_eligible: bool [l]; positions that may be taken.
      threshold: in the units of score.

    Returns:
      bool [l]; the positions taken, at least one if any is eligible.

    >>> score, is_eligible = jnp.array([0.2, 0.9, 0.7]), jnp.array([True, True, True])
    >>> above(score, is_eligible, 0.6).tolist()
    [False, True, True]
    >>> above(score, is_eligible, 0.95).tolist()
    [False, True, False]
    """
    passed = is_eligible & (score >= threshold)
    return jnp.where(jnp.any(passed), passed, best(score, is_eligible))


def factor(
    doubt: Float[Array, "l"],
    is_eligible: Bool[Array, "l"],
    bound: float | Float[Array, ""],
) -> tuple[Bool[Array, "l"], Bool[Array, "l"]]:
    """Applies the factor rule of Fast-dLLM (arXiv:2505.22618, section 3.3).

    Ranked by confidence c_(1) >= c_(2) >= ..., rank n passes if
    (n + 1) (1 - c_(n)) < bound; the longest run of passing ranks is taken, and rank 1
    always.

    Args:
      doubt: float [l]; 1 - c of every position, see `doubt`.
      is_eligible: bool [l]; positions that may be taken.
      bound: of the rule, its f.

    Returns:
      bool [l] twice: the positions that the rule takes as published, and as in the
      released code, which takes all N eligible positions when ranks 1 to N - 1 pass,
      and passes a rank at equality.
    """
    positions, is_ranked = order(-doubt, is_eligible)
    n = jnp.arange(1, doubt.shape[0] + 1)
    error = (n + 1) * doubt[positions]
    published = _leading_run((error < bound) | (n == 1)) & is_ranked
    # The released loop stops at the first failing rank and takes what lies before it;
    # but if that is rank N it takes rank N too.
    released = _leading_run((error <= bound) | (n == 1)) & is_ranked
    num_ranked = jnp.sum(is_ranked)
    is_last_reached = jnp.sum(released) >= num_ranked - 1
    released |= is_last_reached & is_ranked
    return leading(positions, published), leading(positions, released)


def _leading_run(passes: Bool[Array, "l"]) -> Bool[Array, "l"]:
    """True up to the first False."""
    return jnp.cumprod(passes).astype(bool)


def entropy_bound(
    score: Num[Array, "l"],
    entropy: Float[Array, "l"],
    is_eligible: Bool[Array, "l"],
    gamma: float | Float[Array, ""],
) -> Bool[Array, "l"]:
    """Takes the longest prefix U by score with sum_U H - max_U H <= gamma.

    The EB-Sampler's rule (arXiv:2505.24857, section 4). The left side is accumulated
    as everything but the running maximum: subtracting the maximum from the sum would
    cancel small entropies in float32.

    Args:
      score: number [l]; minus the error proxy, the highest first.
      entropy: float [l]; H of every position, nats, >= 0.
      is_eligible: bool [l]; positions that may be taken.
      gamma: the bound, nats.

    Returns:
      bool [l]; the positions taken, at least one if any is eligible.

    >>> entropy = jnp.array([0.3, 0.02, 0.01, 2.0])
    >>> everywhere = jnp.ones(4, bool)
    >>> entropy_bound(-entropy, entropy, everywhere, 0.05).tolist()
    [True, True, True, False]
    >>> entropy_bound(-entropy, entropy, everywhere, 0.0).tolist()
    [False, False, True, False]
    """
    positions, is_ranked = order(score, is_eligible)
    ranked = jnp.where(is_ranked, entropy[positions], jnp.inf)
    maximum = jax.lax.cummax(ranked)
    # When a new maximum arrives, the old one joins the rest.
    rest = jnp.cumsum(
        jnp.minimum(ranked[1:], maximum[:-1]),
        dtype=jnp.promote_types(ranked.dtype, jnp.float32),
    )
    rest = jnp.concatenate([jnp.zeros_like(rest, shape=1), rest])
    # cumsum may round a longer sum below a shorter one; a prefix needs monotonicity.
    is_taken = jax.lax.cummax(rest) <= gamma
    return leading(positions, is_ranked & is_taken.at[0].set(True))
