"""Head outputs to statistics of every position, without ever holding all logits.

The head is applied to slices of the vocabulary; log-sum-exp, entropy, the two best
tokens and the Gumbel draw are running values over the slices. What is alive at once is
a few arrays of [b, r, slice] in float32, whatever the length of the row and the size of
the vocabulary: 3.7 at temperature 0 and 5.7 above, where noise is added, with jaxlib
0.10.2 on a CPU (tests/core/test_predict_memory.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlm_jax.core.canvas import Prediction
from dlm_jax.core.noise import NOISE_TILE, gumbel_noise
from dlm_jax.core.summary import LOWEST, Summary, exclude, merge, summarise


def predict(
    hidden: Float[Array, "g b r d"],
    head: Float[Array, "v d"],
    held: Int[Array, "b r"],
    needs: tuple[str, ...],
    *,
    mask_id: int,
    keys: Key[Array, "b"],
    positions: Int[Array, "b r"],
    adjust: Callable[[Array, Array], Array] = lambda token_ids, logits: logits,
    temperature: float | Float[Array, ""] | None = None,
    guidance: float | Float[Array, ""] | None = None,
    suppressed_ids: tuple[int, ...] = (),
    deferred_ids: tuple[int, ...] = (),
    logits_dtype: Any = None,
    probability_dtype: Any = None,
    vocab_slice: int = 16384,
    vocab_axis: str | None = None,
) -> Prediction:
    """Statistics of the model's distribution over tokens.

    mask_id can not be a candidate, so that no mask is left in the output; it keeps its
    place in the normaliser, so that the statistics are the released code's.

    Args:
      hidden: what the head reads; g is 1, or 2 under guidance: with and without prompt.
      head: the language-model head.
      held: tokens on the canvas.
      needs: optional fields of `Prediction` to compute.
      mask_id: the mask token.
      keys: one per row, for this step's noise.
      positions: absolute positions, which the noise depends on.
      adjust: (token ids [s], logits [b, r, s]) -> logits, on every slice.
      temperature: of the draw; None takes the most probable token and draws no noise.
      guidance: scale of classifier-free guidance; needs g = 2.
      suppressed_ids: tokens whose logits become -inf.
      deferred_ids: possible candidates that have probability 0 in all statistics.
      logits_dtype: what logits are rounded to, and under guidance every step of their
        arithmetic; None for float32 or wider.
      probability_dtype: what probabilities are rounded to; None for float32 or wider.
      vocab_slice: entries of the vocabulary per slice, a multiple of NOISE_TILE.
      vocab_axis: mapped axis over which equal parts of the head lie, in order; None if
        `head` is all of it. Only statistics per position cross it.

    Returns:
      A Prediction with fields [b, r].
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    first_token, is_aligned = _own_part(head.shape[0], vocab_axis)
    noise = functools.partial(
        gumbel_noise, keys, positions, dtype=wide, is_aligned=is_aligned
    )

    # A summary of every slice, then one of all slices and devices.
    def summarise_slice(weights: Array, start: Array) -> Summary:
        token_ids = start + jnp.arange(weights.shape[0], dtype=jnp.int32)
        logits = adjust(token_ids, _logits(hidden, weights, guidance, logits_dtype))
        logits = exclude(logits, token_ids, suppressed_ids)
        return summarise(
            logits,
            token_ids,
            start,
            held,
            needs,
            mask_id=mask_id,
            deferred_ids=deferred_ids,
            temperature=temperature,
            noise=noise,
        )

    summary = _over_slices(summarise_slice, head, first_token, vocab_slice)
    if vocab_axis is not None:
        summary = _over_devices(summary, vocab_axis)
    return _finish(summary, needs, deferred_ids, probability_dtype)


def _own_part(vocab_size: int, vocab_axis: str | None) -> tuple[Int[Array, ""], bool]:
    """A device's first token, and whether it is a multiple of NOISE_TILE.

    Args:
      vocab_size: tokens of the device's part of the vocabulary.
      vocab_axis: mapped axis that the vocabulary is split over; None if it is whole.
    """
    if vocab_axis is None:
        return jnp.int32(0), True
    first_token = jax.lax.axis_index(vocab_axis) * vocab_size
    return first_token, vocab_size % NOISE_TILE == 0


def _logits(
    hidden: Float[Array, "g b r d"],
    weights: Float[Array, "s d"],
    guidance: float | Float[Array, ""] | None,
    logits_dtype: Any,
) -> Float[Array, "b r s"]:
    """The logits of a slice of the head, with guidance applied."""
    logits = jnp.einsum(
        "gbrd,vd->gbrv",
        hidden,
        weights,
        preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
    )
    logits = _round(logits, logits_dtype)
    if guidance is None:
        return logits[0]
    # Rounded after each operation, as PyTorch does in half precision.
    difference = _round(logits[0] - logits[1], logits_dtype)
    scaled = _round((guidance + 1) * difference, logits_dtype)
    return _round(logits[1] + scaled, logits_dtype)


def _over_slices(
    summarise_slice: Callable[[Array, Array], Summary],
    head: Float[Array, "v d"],
    first_token: Int[Array, ""],
    vocab_slice: int,
) -> Summary:
    """The summary of a head, made slice by slice.

    Args:
      summarise_slice: (weights, first token) -> summary of a slice.
      head: all weights.
      first_token: the token of the head's first row.
      vocab_slice: rows of the head per slice.
    """
    summaries = []
    num_slices, num_left = divmod(head.shape[0], vocab_slice)
    if num_slices:
        # The first slice is outside of the scan and gives the scan's initial value.
        first = summarise_slice(head[:vocab_slice], first_token)

        def scan_slice(running: Summary, i: Array) -> tuple[Summary, None]:
            start = i * vocab_slice
            weights = jax.lax.dynamic_slice_in_dim(head, start, vocab_slice)
            return merge(running, summarise_slice(weights, first_token + start)), None

        if num_slices > 1:
            first, _ = jax.lax.scan(
                scan_slice, first, jnp.arange(1, num_slices, dtype=jnp.int32)
            )
        summaries.append(first)
    if num_left:
        # The rest has its own static size: padding the head would copy it.
        start = num_slices * vocab_slice
        summaries.append(summarise_slice(head[start:], first_token + start))
    return functools.reduce(merge, summaries)


def _over_devices(summary: Summary, vocab_axis: str) -> Summary:
    """The summary of the whole vocabulary, from those of each device's part."""
    parts = jax.lax.all_gather(summary, vocab_axis)
    own = (
        jax.tree.map(lambda x, i=i: x[i], parts)
        for i in range(jax.lax.axis_size(vocab_axis))
    )
    return functools.reduce(merge, own)


def _finish(
    summary: Summary,
    needs: tuple[str, ...],
    deferred_ids: tuple[int, ...],
    probability_dtype: Any,
) -> Prediction:
    """The prediction that the whole vocabulary's summary gives."""
    log_sum = jnp.log1p(summary["rest"])  # Of the masses: relative to the maximum.

    def log_prob(logit: Array, token: Array | None) -> Array:
        # The maximum first: next to a logit of 30, a sum would lose four digits.
        value = (logit - summary["max"]) - log_sum
        for token_id in deferred_ids if token is not None else ():
            value = jnp.where(token == token_id, -jnp.inf, value)
        if probability_dtype is not None:
            value = jnp.log(_round(jnp.exp(value), probability_dtype))
        return value

    # The candidate. If there is none (all -inf, or only mask_id left) its probability
    # is NaN, which the loop reports; token 0 would be wrong.
    has_candidate = summary["best"] > LOWEST
    best = jnp.where(has_candidate, summary["best"], jnp.nan)
    best_log_prob = log_prob(best, summary["best_token"])
    if "drawn_token" in summary:
        token = summary["drawn_token"]
        drawn = jnp.where(has_candidate, summary["drawn"], jnp.nan)
        chosen_log_prob = log_prob(drawn, token)
    else:
        token, chosen_log_prob = summary["best_token"], best_log_prob

    # What the sampler asked for.
    optional = {}
    if "best_log_prob" in needs:
        optional["best_log_prob"] = best_log_prob
    if "runner_up_log_prob" in needs:
        is_first = summary["first"] == summary["best"]
        runner_up = jnp.where(is_first, summary["second"], summary["first"])
        optional["runner_up_log_prob"] = log_prob(runner_up, None)
    if "held_log_prob" in needs:
        optional["held_log_prob"] = log_prob(summary["held"], None)
    if "entropy" in needs:
        entropy = log_sum - summary["moment"] / (1 + summary["rest"])
        # Rounding can make the entropy of a certain distribution slightly negative.
        entropy = jnp.maximum(entropy, 0)
        # The entropy is that of the other tokens, not of the deferred candidate.
        is_deferred = jnp.isin(token, jnp.array(deferred_ids, int))
        optional["entropy"] = jnp.where(is_deferred, jnp.inf, entropy)
    return Prediction(token=token, log_prob=chosen_log_prob, **optional)


def _round(values: Float[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """Rounds to a narrower dtype; XLA may drop a pair of casts, but not this."""
    if dtype is None:
        return values
    precision = jnp.finfo(dtype)
    return jax.lax.reduce_precision(values, precision.nexp, precision.nmant)
