"""Head outputs to statistics of every position, without ever holding all logits.

The head is applied to slices of the vocabulary; log-sum-exp, entropy, the two best
tokens and the Gumbel draw are running values over the slices. What is alive at once is
[b, r, slice] in float32, whatever the length of the row and the size of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlm_jax.types import Prediction

# Noise is a function of (row's key, step, position, tile of the vocabulary), so that
# neither the slice size nor padding or batch can change a draw.
NOISE_TILE = 1024

# Stands for "no logit seen yet" in running maxima. Finite, because the entropy's update
# multiplies by differences of maxima; half the range, because those must not overflow.
_LOWEST = jnp.finfo(jnp.float32).min / 2


def gumbel_noise(
    keys: Key[Array, "b"],
    positions: Int[Array, "b r"],
    first_tile: Int[Array, ""] | int,
    num_tiles: int,
    dtype: jnp.dtype,
) -> Float[Array, "b r v"]:
    """Standard Gumbel noise for `num_tiles` tiles of the vocabulary.

    Made from high-precision uniforms: with float32's usual ones the upper tail is cut
    off, which lowers the effective temperature (arXiv:2409.02908).
    """
    tiles = first_tile + jnp.arange(num_tiles)

    def tile_noise(
        key: Key[Array, ""], position: Int[Array, ""], tile: Int[Array, ""]
    ) -> Float[Array, "t"]:
        key = jax.random.fold_in(jax.random.fold_in(key, position), tile)
        return jax.random.gumbel(key, (NOISE_TILE,), dtype, mode="high")

    noise = jax.vmap(tile_noise, (None, None, 0))
    noise = jax.vmap(jax.vmap(noise, (None, 0, None)), (0, 0, None))
    return noise(keys, positions, tiles).reshape(*positions.shape, -1)


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
    confidence_dtype: Any = None,
    vocab_slice: int = 16384,
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
      confidence_dtype: what logits and probabilities are rounded to; None for float32
        or wider.
      vocab_slice: entries of the vocabulary per slice, a multiple of NOISE_TILE.

    Returns:
      A Prediction with fields [b, r].
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    vocab_size = head.shape[0]
    shape = hidden.shape[1:3]
    lowest = jnp.full(shape, _LOWEST, wide)

    def sliced_logits(weights: Array, token_ids: Array) -> Array:
        logits = jnp.einsum(
            "gbrd,vd->gbrv", hidden, weights, preferred_element_type=wide
        )
        if guidance is None:
            logits = logits[0]
        else:
            logits = logits[1] + (guidance + 1) * (logits[0] - logits[1])
        if confidence_dtype is not None:
            logits = _round(logits, confidence_dtype)
        return _exclude(adjust(token_ids, logits), token_ids, suppressed_ids)

    def update(
        running: dict[str, Array], weights: Array, start: Any
    ) -> dict[str, Array]:
        size = weights.shape[0]
        token_ids = start + jnp.arange(size, dtype=jnp.int32)
        logits = sliced_logits(weights, token_ids)
        new = dict(running)

        counted = _exclude(logits, token_ids, deferred_ids)
        highest = jnp.maximum(running["max"], jnp.max(counted, axis=-1))
        shift = running["max"] - highest
        mass = jnp.exp(counted - highest[..., None])
        scale = jnp.exp(shift)
        new["max"] = highest
        new["sum"] = running["sum"] * scale + jnp.sum(mass, axis=-1)
        if "entropy" in needs:
            # Sum of mass * (logit - max); a mass of 0 may meet a logit of -inf.
            moment = jnp.where(mass > 0, mass * (counted - highest[..., None]), 0)
            new["moment"] = (running["moment"] + running["sum"] * shift) * scale
            new["moment"] += jnp.sum(moment, axis=-1)

        candidates = _exclude(logits, token_ids, (mask_id,))
        index = jnp.argmax(candidates, axis=-1)
        top = _pick(candidates, index)
        is_better = top > running["best"]
        new["best"] = jnp.where(is_better, top, running["best"])
        new["best_token"] = jnp.where(
            is_better, token_ids[index], running["best_token"]
        )
        if "runner_up_log_prob" in needs:
            others = jnp.where(
                jnp.arange(size) == index[..., None], -jnp.inf, candidates
            )
            new["runner_up"] = jnp.maximum(
                jnp.maximum(running["runner_up"], jnp.max(others, axis=-1)),
                jnp.minimum(running["best"], top),
            )
        if "held_log_prob" in needs:
            offset = held - start
            is_here = (offset >= 0) & (offset < size)
            value = _pick(counted, jnp.clip(offset, 0, size - 1))
            new["held"] = jnp.where(is_here, value, running["held"])
        if temperature is not None:
            num_tiles = -(-size // NOISE_TILE)
            noise = gumbel_noise(keys, positions, start // NOISE_TILE, num_tiles, wide)
            perturbed = candidates + temperature * noise[..., :size]
            index = jnp.argmax(perturbed, axis=-1)
            top = _pick(perturbed, index)
            is_better = top > running["drawn_value"]
            new["drawn_value"] = jnp.where(is_better, top, running["drawn_value"])
            for name, value in (
                ("drawn_token", token_ids[index]),
                ("drawn", _pick(candidates, index)),
            ):
                new[name] = jnp.where(is_better, value, running[name])
        return new

    running = {"max": lowest, "sum": jnp.zeros(shape, wide)}
    running |= {"best": lowest, "best_token": jnp.zeros(shape, jnp.int32)}
    if "entropy" in needs:
        running["moment"] = jnp.zeros(shape, wide)
    if "runner_up_log_prob" in needs:
        running["runner_up"] = lowest
    if "held_log_prob" in needs:
        running["held"] = lowest
    if temperature is not None:
        running |= {"drawn_value": lowest, "drawn": lowest}
        running["drawn_token"] = jnp.zeros(shape, jnp.int32)

    num_slices = vocab_size // vocab_slice
    if num_slices:

        def scan_slice(running: dict[str, Array], i: Array) -> tuple[dict, None]:
            start = i * vocab_slice
            weights = jax.lax.dynamic_slice_in_dim(head, start, vocab_slice)
            return update(running, weights, start), None

        running, _ = jax.lax.scan(
            scan_slice, running, jnp.arange(num_slices, dtype=jnp.int32)
        )
    if vocab_size % vocab_slice:
        # The rest has its own static size: padding the head would copy it.
        start = num_slices * vocab_slice
        running = update(running, head[start:], start)

    log_sum = running["max"] + jnp.log(running["sum"])

    def log_prob(logit: Array, token: Array | None) -> Array:
        value = logit - log_sum
        for token_id in deferred_ids if token is not None else ():
            value = jnp.where(token == token_id, -jnp.inf, value)
        if confidence_dtype is not None:
            value = jnp.log(_round(jnp.exp(value), confidence_dtype))
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
        optional["runner_up_log_prob"] = log_prob(running["runner_up"], None)
    if "held_log_prob" in needs:
        optional["held_log_prob"] = log_prob(running["held"], None)
    if "entropy" in needs:
        entropy = jnp.log(running["sum"]) - running["moment"] / running["sum"]
        # Rounding can leave a certain distribution a hair below 0.
        entropy = jnp.maximum(entropy, 0)
        # What is left beside a deferred token may be certain, yet has to wait.
        is_deferred = jnp.isin(running["best_token"], jnp.array(deferred_ids, int))
        optional["entropy"] = jnp.where(is_deferred, jnp.inf, entropy)
    return Prediction(token=token, log_prob=chosen_log_prob, **optional)


def _round(values: Float[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """Rounds to a narrower dtype; XLA may drop a pair of casts, but not this."""
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
