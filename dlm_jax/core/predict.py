"""Head outputs to statistics of every position, without ever holding too many logits.

Logits that fit a budget of bytes are computed in one piece. Others are computed for
slices of the vocabulary, and log-sum-exp, entropy, the two best tokens and the Gumbel
draw are running values over the slices. What is alive at once is a few arrays of
[b, r, slice] in float32, whatever the length of the row and the size of the vocabulary:
3.7 at temperature 0 and 5.7 above, where noise is added, with jaxlib 0.10.2 on a CPU
(tests/core/test_predict_memory.py).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlm_jax.core.canvas import Prediction
from dlm_jax.core.noise import NOISE_TILE, gumbel_noise
from dlm_jax.core.summary import LOWEST, Summary, exclude, merge, summarise

# Logits of 8 rows x 32 positions x LLaDA-8B's vocabulary in float32 are 130 MB.
LOGITS_BYTES = 2**27
# Up to so many slices are unrolled where that saves copies of the head; more would take
# long to compile.
_MAX_UNROLLED = 8


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
    logits_bytes: int = LOGITS_BYTES,
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
      logits_bytes: of logits that are computed in one piece, see `slice_size`.
      vocab_axis: mapped axis over which equal parts of the head lie, in order; None if
        `head` is all of it. Only statistics per position cross it.

    Returns:
      A Prediction with fields [b, r].
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    first_token, is_aligned = _own_part(head.shape[0], vocab_axis)

    # A summary of every slice, then one of all slices and devices.
    def summarise_slice(
        hidden: Array, positions: Array, weights: Array, start: Array
    ) -> Summary:
        noise = functools.partial(
            gumbel_noise, keys, positions, dtype=wide, is_aligned=is_aligned
        )
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

    num_positions = math.prod(hidden.shape[:-1])
    size = slice_size(head.shape[0], num_positions, wide.itemsize, logits_bytes)
    summary = _over_slices(summarise_slice, hidden, positions, head, first_token, size)
    if vocab_axis is not None:
        summary = _over_devices(summary, vocab_axis)
    return _finish(summary, needs, deferred_ids, probability_dtype)


def slice_size(
    vocab_size: int, num_positions: int, itemsize: int, logits_bytes: int
) -> int:
    """Entries of the vocabulary whose logits are computed in one piece.

    Slices are of one size but for the last: as equal as multiples of NOISE_TILE allow.

    Args:
      vocab_size: entries of the (device's part of the) vocabulary.
      num_positions: that have logits, of all rows and both halves of guidance.
      itemsize: bytes of a logit.
      logits_bytes: that a piece may take; a tile of the noise is never divided.

    >>> slice_size(126464, 8 * 32, 4, 2**27)
    126464
    >>> slice_size(126464, 32 * 32, 4, 2**27)
    31744
    """
    most = int(logits_bytes // (num_positions * itemsize))
    if most >= vocab_size:
        return vocab_size
    most = max(most // NOISE_TILE, 1) * NOISE_TILE
    num_slices = -(-vocab_size // most)
    return -(-vocab_size // (num_slices * NOISE_TILE)) * NOISE_TILE


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


# (hidden [g, b, r, d], positions [b, r], weights [s, d], first token) -> of a slice
_Summarise = Callable[[Array, Array, Array, Array], Summary]


def _over_slices(
    summarise_slice: _Summarise,
    hidden: Float[Array, "g b r d"],
    positions: Int[Array, "b r"],
    head: Float[Array, "v d"],
    first_token: Int[Array, ""],
    size: int,
) -> Summary:
    """The summary of a head, made slice by slice.

    Args:
      summarise_slice: makes the summary of a slice.
      hidden: what the head reads.
      positions: where its rows stand, for the noise.
      head: all weights.
      first_token: the token of the head's first row.
      size: rows of the head per slice; the last slice may have fewer.
    """
    num_slices = -(-head.shape[0] // size)
    if num_slices == 1:
        return summarise_slice(hidden, positions, head, first_token)
    inputs = hidden, positions, head, first_token
    scan = functools.partial(scan_slices, summarise_slice, size)
    if num_slices > _MAX_UNROLLED:
        return scan(*inputs)
    unroll = functools.partial(unroll_slices, summarise_slice, size)
    # A CPU copies static slices too, and all of them first.
    return jax.lax.platform_dependent(*inputs, cpu=scan, default=unroll)


def scan_slices(
    summarise_slice: _Summarise,
    size: int,
    hidden: Float[Array, "g b r d"],
    positions: Int[Array, "b r"],
    head: Float[Array, "v d"],
    first_token: Int[Array, ""],
) -> Summary:
    """The summary of a head in a loop over slices, each copied out of the head.

    Args: see `_over_slices`.
    """

    def add(running: Summary, weights: Array, start: int | Array) -> Summary:
        new = summarise_slice(hidden, positions, weights, first_token + start)
        return merge(running, new)

    def scan_slice(running: Summary, i: Array) -> tuple[Summary, None]:
        start = i * size
        weights = jax.lax.dynamic_slice_in_dim(head, start, size)
        return add(running, weights, start), None

    # The first slice is outside of the scan and gives the scan's initial value.
    num_whole, num_left = divmod(head.shape[0], size)
    running = summarise_slice(hidden, positions, head[:size], first_token)
    slices = jnp.arange(1, num_whole, dtype=jnp.int32)
    running, _ = jax.lax.scan(scan_slice, running, slices)
    if num_left:
        # The rest has its own static size: padding the head would copy it.
        start = num_whole * size
        running = add(running, head[start:], start)
    return running


def unroll_slices(
    summarise_slice: _Summarise,
    size: int,
    hidden: Float[Array, "g b r d"],
    positions: Int[Array, "b r"],
    head: Float[Array, "v d"],
    first_token: Int[Array, ""],
) -> Summary:
    """The same as `scan_slices`, by code for each slice that reads the head in place.

    Args: see `_over_slices`.
    """
    running = summarise_slice(hidden, positions, head[:size], first_token)
    for start in range(size, head.shape[0], size):
        hidden, positions = _after(running, hidden, positions)
        weights = head[start : start + size]
        new = summarise_slice(hidden, positions, weights, first_token + start)
        running = merge(running, new)
    return running


def _after(
    running: Summary, hidden: Float[Array, "g b r d"], positions: Int[Array, "b r"]
) -> tuple[Float[Array, "g b r d"], Int[Array, "b r"]]:
    """The same hidden states and positions, once a summary is there.

    Logits and noise of one slice are then made after those of another, and one slice's
    are alive at a time. An optimization barrier is gone when a program is scheduled.
    """
    # Always true, also of NaN; but a compiler has to have the values first.
    is_there = functools.reduce(
        jnp.logical_and, (~(value > jnp.inf) for value in running.values())
    )
    hidden = jnp.where(is_there[None, ..., None], hidden, 0)
    return hidden, jnp.where(is_there, positions, 0)


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
