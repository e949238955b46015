"""Summaries of parts of the vocabulary, and how two of them become one.

A summary holds one array [b, r] per statistic. It takes as much memory for the whole
vocabulary as for a slice of it, so `predict` never holds all logits.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The statistics of a part of the vocabulary. "Counted" are all tokens but the deferred
# ones, "candidates" all but the mask. The mass of a token is exp(logit - max).
#   max, rest: the highest counted logit; the mass of all counted tokens but one of the
#     highest.
#   moment: sum of mass * (logit - max), for the entropy.
#   best, best_token: the candidate with the highest logit.
#   first, second: the two highest logits of counted candidates.
#   held: the logit of the token on the canvas; -inf if that is in another part.
#   drawn_value, drawn_token, drawn: the highest perturbed logit of the candidates, its
#     token, and that token's logit without noise.
Summary = dict[str, Array]

# Means "no logit seen yet" in running maxima. Finite, because the entropy's update
# multiplies by differences of maxima; half the range, because those must not overflow.
LOWEST = jnp.finfo(jnp.float32).min / 2


def summarise(
    logits: Float[Array, "b r s"],
    token_ids: Int[Array, "s"],
    start: Int[Array, ""],
    held: Int[Array, "b r"],
    needs: tuple[str, ...],
    *,
    mask_id: int,
    deferred_ids: tuple[int, ...],
    temperature: float | Float[Array, ""] | None,
    noise: Callable[[Array, int], Float[Array, "b r s"]],
) -> Summary:
    """The summary of one slice of the vocabulary.

    Args:
      logits: of the slice.
      token_ids: the slice's tokens.
      start: the first of them.
      held: tokens on the canvas.
      needs: optional fields of `Prediction` to compute.
      mask_id: the mask token, which is no candidate.
      deferred_ids: tokens that may be candidates but are not counted.
      temperature: of the draw; None draws nothing.
      noise: (start, size) -> standard Gumbel noise of the slice.
    """
    size = token_ids.shape[0]
    # The normaliser and the entropy.
    counted = exclude(logits, token_ids, deferred_ids)
    found = _mass(counted, has_moment="entropy" in needs)

    # The most probable token.
    candidates = exclude(logits, token_ids, (mask_id,))
    index = jnp.argmax(candidates, axis=-1)
    found["best"] = jnp.maximum(_pick(candidates, index), LOWEST)
    found["best_token"] = token_ids[index]

    # The second most probable token, and the one on the canvas.
    if "runner_up_log_prob" in needs:
        found |= _two_best(exclude(candidates, token_ids, deferred_ids))
    if "held_log_prob" in needs:
        offset = held - start
        is_here = (offset >= 0) & (offset < size)
        value = _pick(counted, jnp.clip(offset, 0, size - 1))
        found["held"] = jnp.where(is_here, value, -jnp.inf)

    # The drawn token.
    if temperature is not None:
        perturbed = candidates + temperature * noise(start, size)
        index = jnp.argmax(perturbed, axis=-1)
        found["drawn_value"] = jnp.maximum(_pick(perturbed, index), LOWEST)
        found["drawn_token"] = token_ids[index]
        found["drawn"] = _pick(candidates, index)
    return found


def _mass(counted: Float[Array, "b r s"], has_moment: bool) -> Summary:
    """`max`, `rest` and, if asked for, `moment`."""
    # Not -inf, where all are excluded: differences of maxima have to be finite.
    highest = jnp.maximum(jnp.max(counted, axis=-1), LOWEST)
    # The mass of all tokens but one of the best, whose own mass is 1. A sum with
    # that 1 in it would lose what lies below float32's resolution there. The best is
    # taken out of the logits: taken out of the masses it would cost two more arrays.
    is_best = jnp.arange(counted.shape[-1]) == jnp.argmax(counted, axis=-1)[..., None]
    shifted = jnp.where(is_best, -jnp.inf, counted) - highest[..., None]
    mass = jnp.exp(shifted)
    # Where all are excluded there is no best token; if it is infinite, all is NaN.
    rest = jnp.sum(mass, axis=-1) - (highest == LOWEST) + 0 * highest
    found = {"max": highest, "rest": rest}
    if has_moment:
        # A mass of 0 may meet a logit of -inf; the best token's moment is 0.
        moment = jnp.where(mass == 0, 0, mass * shifted)
        found["moment"] = jnp.sum(moment, axis=-1)
    return found


def _two_best(counted: Float[Array, "b r s"]) -> Summary:
    """`first` and `second`; the logits of deferred tokens are -inf already."""
    index = jnp.argmax(counted, axis=-1)
    first = jnp.maximum(_pick(counted, index), LOWEST)
    is_first = jnp.arange(counted.shape[-1]) == index[..., None]
    others = jnp.where(is_first, -jnp.inf, counted)
    second = jnp.maximum(jnp.max(others, axis=-1), LOWEST)
    return {"first": first, "second": second}


def merge(left: Summary, right: Summary) -> Summary:
    """The summary of two parts of the vocabulary; on a tie the left token wins."""
    # Masses, relative to the larger of the two maxima.
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
    # The two best, and the token on the canvas.
    if "second" in left:
        loser = jnp.minimum(left["first"], right["first"])
        second = jnp.maximum(left["second"], right["second"])
        both["first"] = jnp.maximum(left["first"], right["first"])
        both["second"] = jnp.maximum(second, loser)
    if "held" in left:
        both["held"] = jnp.maximum(left["held"], right["held"])
    # Tokens, with their logits.
    for decisive, names in (
        ("best", ("best", "best_token")),
        ("drawn_value", ("drawn_value", "drawn_token", "drawn")),
    ):
        for name in names if decisive in left else ():
            is_better = right[decisive] > left[decisive]
            both[name] = jnp.where(is_better, right[name], left[name])
    return both


def exclude(
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
