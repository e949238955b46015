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

# Noise is a function of (row's key, step, position, tile of the vocabulary), so that
# neither the slice size nor padding or batch can change a draw.
NOISE_TILE = 1024

# Stands for "no logit seen yet" in running maxima. Finite, because the entropy's update
# multiplies by differences of maxima; half the range, because those must not overflow.
_LOWEST = jnp.finfo(jnp.float32).min / 2


def gumbel_noise(
    keys: Key[Array, "b"],
    positions: Int[Array, "b r"],
    first_token: Int[Array, ""] | int,
    num_tokens: int,
    dtype: jnp.dtype,
    is_aligned: bool = True,
) -> Float[Array, "b r v"]:
    """Standard Gumbel noise for a run of the vocabulary.

    Made from high-precision uniforms: with float32's usual ones the upper tail is cut
    off, which lowers the effective temperature (arXiv:2409.02908).

    Args:
      keys: one per row.
      positions: the draw of a token depends on its position and on its id.
      first_token: where the run starts.
      num_tokens: its length.
      dtype: of the noise.
      is_aligned: first_token is a multiple of NOISE_TILE.
    """
    first_tile = first_token // NOISE_TILE
    num_tiles = -(-num_tokens // NOISE_TILE) + (0 if is_aligned else 1)
    tiles = first_tile + jnp.arange(num_tiles)

    def position_noise(
        key: Key[Array, ""], position: Int[Array, ""], tile: Int[Array, ""]
    ) -> Float[Array, "t"]:
        key = jax.random.fold_in(jax.random.fold_in(key, position), tile)
        return jax.random.gumbel(key, (NOISE_TILE,), dtype, mode="high")

    def tile_noise(tile: Int[Array, ""]) -> Float[Array, "b r t"]:
        noise = jax.vmap(jax.vmap(position_noise, (None, 0, None)), (0, 0, None))
        return noise(keys, positions, tile)

    # Tile by tile, for what a draw is made of takes several times its own memory.
    noise = jnp.moveaxis(jax.lax.map(tile_noise, tiles), 0, -2)
    noise = noise.reshape(*positions.shape, -1)
    if is_aligned:
        return noise[..., :num_tokens]
    start = first_token % NOISE_TILE
    return jax.lax.dynamic_slice_in_dim(noise, start, num_tokens, axis=-1)


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
      deferred_ids: tokens that may be candidates but have probability 0 in all
        statistics.
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
    vocab_size = head.shape[0]
    first_token = jnp.int32(0)
    is_aligned = True
    if vocab_axis is not None:
        first_token = jax.lax.axis_index(vocab_axis) * vocab_size
        is_aligned = vocab_size % NOISE_TILE == 0

    def sliced_logits(weights: Array, token_ids: Array) -> Array:
        logits = jnp.einsum(
            "gbrd,vd->gbrv", hidden, weights, preferred_element_type=wide
        )
        logits = _round(logits, logits_dtype)
        if guidance is None:
            logits = logits[0]
        else:
            # Rounded after each operation, as PyTorch does in half precision.
            difference = _round(logits[0] - logits[1], logits_dtype)
            scaled = _round((guidance + 1) * difference, logits_dtype)
            logits = _round(logits[1] + scaled, logits_dtype)
        return _exclude(adjust(token_ids, logits), token_ids, suppressed_ids)

    def summarise(weights: Array, start: Any) -> dict[str, Array]:
        """The statistics of a slice alone; `start` is its first token."""
        size = weights.shape[0]
        token_ids = start + jnp.arange(size, dtype=jnp.int32)
        logits = sliced_logits(weights, token_ids)

        counted = _exclude(logits, token_ids, deferred_ids)
        # Not -inf, where all are excluded: differences of maxima have to be finite.
        highest = jnp.maximum(jnp.max(counted, axis=-1), _LOWEST)
        shifted = counted - highest[..., None]
        mass = jnp.exp(shifted)
        # The mass of all tokens but one of the best, whose own mass is 1. A sum with
        # that 1 in it would lose what lies below float32's resolution there.
        is_best = counted == highest[..., None]
        # A best token adds 0, or NaN if its logit is infinite.
        others = jnp.sum(jnp.where(is_best, shifted, mass), axis=-1)
        found = {"max": highest, "rest": others + (jnp.sum(is_best, axis=-1) - 1)}
        if "entropy" in needs:
            # Sum of mass * (logit - max); a mass of 0 may meet a logit of -inf.
            moment = jnp.where(mass == 0, 0, mass * shifted)
            found["moment"] = jnp.sum(moment, axis=-1)

        candidates = _exclude(logits, token_ids, (mask_id,))
        index = jnp.argmax(candidates, axis=-1)
        found["best"] = jnp.maximum(_pick(candidates, index), _LOWEST)
        found["best_token"] = token_ids[index]
        if "runner_up_log_prob" in needs:
            # The two best that count: a deferred token has probability 0.
            eligible = _exclude(candidates, token_ids, deferred_ids)
            index = jnp.argmax(eligible, axis=-1)
            found["first"] = jnp.maximum(_pick(eligible, index), _LOWEST)
            others = jnp.where(jnp.arange(size) == index[..., None], -jnp.inf, eligible)
            found["second"] = jnp.maximum(jnp.max(others, axis=-1), _LOWEST)
        if "held_log_prob" in needs:
            offset = held - start
            is_here = (offset >= 0) & (offset < size)
            value = _pick(counted, jnp.clip(offset, 0, size - 1))
            found["held"] = jnp.where(is_here, value, -jnp.inf)
        if temperature is not None:
            noise = gumbel_noise(keys, positions, start, size, wide, is_aligned)
            perturbed = candidates + temperature * noise
            index = jnp.argmax(perturbed, axis=-1)
            found["drawn_value"] = jnp.maximum(_pick(perturbed, index), _LOWEST)
            found["drawn_token"] = token_ids[index]
            found["drawn"] = _pick(candidates, index)
        return found

    summaries = []
    num_slices = vocab_size // vocab_slice
    if num_slices:
        # The first one outside of the scan, so that there is something to start from.
        first = summarise(head[:vocab_slice], first_token)

        def scan_slice(running: dict[str, Array], i: Array) -> tuple[dict, None]:
            start = i * vocab_slice
            weights = jax.lax.dynamic_slice_in_dim(head, start, vocab_slice)
            return _merge(running, summarise(weights, first_token + start)), None

        if num_slices > 1:
            first, _ = jax.lax.scan(
                scan_slice, first, jnp.arange(1, num_slices, dtype=jnp.int32)
            )
        summaries.append(first)
    if vocab_size % vocab_slice:
        # The rest has its own static size: padding the head would copy it.
        start = num_slices * vocab_slice
        summaries.append(summarise(head[start:], first_token + start))
    running = functools.reduce(_merge, summaries)
    if vocab_axis is not None:
        parts = jax.lax.all_gather(running, vocab_axis)
        running = functools.reduce(
            _merge,
            (
                jax.tree.map(lambda x, i=i: x[i], parts)
                for i in range(jax.lax.axis_size(vocab_axis))
            ),
        )

    log_sum = jnp.log1p(running["rest"])  # Of the masses: relative to the maximum.

    def log_prob(logit: Array, token: Array | None) -> Array:
        # The maximum first: next to a logit of 30, a sum would lose four digits.
        value = (logit - running["max"]) - log_sum
        for token_id in deferred_ids if token is not None else ():
            value = jnp.where(token == token_id, -jnp.inf, value)
        if probability_dtype is not None:
            value = jnp.log(_round(jnp.exp(value), probability_dtype))
        return value

    # Without any candidate (all -inf, or only mask_id left) there is no token to take:
    # NaN, which the loop reports, instead of token 0.
    has_candidate = running["best"] > _LOWEST
    best = jnp.where(has_candidate, running["best"], jnp.nan)
    best_log_prob = log_prob(best, running["best_token"])
    if temperature is None:
        token, chosen_log_prob = running["best_token"], best_log_prob
    else:
        token = running["drawn_token"]
        drawn = jnp.where(has_candidate, running["drawn"], jnp.nan)
        chosen_log_prob = log_prob(drawn, token)
    optional = {}
    if "best_log_prob" in needs:
        optional["best_log_prob"] = best_log_prob
    if "runner_up_log_prob" in needs:
        is_first = running["first"] == running["best"]
        runner_up = jnp.where(is_first, running["second"], running["first"])
        optional["runner_up_log_prob"] = log_prob(runner_up, None)
    if "held_log_prob" in needs:
        optional["held_log_prob"] = log_prob(running["held"], None)
    if "entropy" in needs:
        entropy = log_sum - running["moment"] / (1 + running["rest"])
        # Rounding can leave a certain distribution a hair below 0.
        entropy = jnp.maximum(entropy, 0)
        # What is left beside a deferred token says nothing of the candidate.
        is_deferred = jnp.isin(token, jnp.array(deferred_ids, int))
        optional["entropy"] = jnp.where(is_deferred, jnp.inf, entropy)
    return Prediction(token=token, log_prob=chosen_log_prob, **optional)


def _merge(left: dict[str, Array], right: dict[str, Array]) -> dict[str, Array]:
    """The statistics of two parts of the vocabulary; on a tie the left token wins."""
    highest = jnp.maximum(left["max"], right["max"])
    shifts = [part["max"] - highest for part in (left, right)]
    scales = [jnp.exp(shift) for shift in shifts]
    both = {"max": highest}
    both["rest"] = jnp.where(
        left["max"] >= right["max"],
        left["rest"] + (1 + right["rest"]) * scales[1],
        right["rest"] + (1 + left["rest"]) * scales[0],
    )
    if "moment" in left:
        own = [
            (part["moment"] + (1 + part["rest"]) * shift) * scale
            for part, shift, scale in zip((left, right), shifts, scales, strict=True)
        ]
        both["moment"] = own[0] + own[1]
    if "second" in left:
        loser = jnp.minimum(left["first"], right["first"])
        second = jnp.maximum(left["second"], right["second"])
        both["first"] = jnp.maximum(left["first"], right["first"])
        both["second"] = jnp.maximum(second, loser)
    if "held" in left:
        both["held"] = jnp.maximum(left["held"], right["held"])
    for decisive, names in (
        ("best", ("best", "best_token")),
        ("drawn_value", ("drawn_value", "drawn_token", "drawn")),
    ):
        for name in names if decisive in left else ():
            is_better = right[decisive] > left[decisive]
            both[name] = jnp.where(is_better, right[name], left[name])
    return both


def _round(values: Float[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """Rounds to a narrower dtype; XLA may drop a pair of casts, but not this."""
    if dtype is None:
        return values
    precision = jnp.finfo(dtype)
    return jax.lax.reduce_precision(values, precision.nexp, precision.nmant)


def _exclude(
    logits: Float[Array, "b r v"], token_ids: Int[Array, "v"], excluded: tuple[int, ...]
) -> Float[Array, "b r v"]:
    """Sets the logits of some tokens to -inf."""
    for excluded_id in excluded:
        logits = jnp.where(token_ids == excluded_id, -jnp.inf, logits)
    return logits


def _pick(
    values: Float[Array, "b r v"], index: Int[Array, "b r"]
) -> Float[Array, "b r"]:
    """values[b, r, index[b, r]]."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]
