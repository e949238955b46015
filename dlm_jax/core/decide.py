"""What a sampler decides for one row, and what of it is allowed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError


def let_deferred_wait(
    options: Options, canvas: Canvas, prediction: Prediction
) -> Canvas:
    """The canvas whose eligible positions can be committed now.

    Positions without a prediction cannot. Those with a deferred candidate wait while
    another position is eligible.
    """
    is_eligible = canvas.is_eligible & prediction.is_known
    if options.deferred_ids:
        deferred_ids = jnp.array(options.deferred_ids, jnp.int32)
        is_ready = is_eligible & ~jnp.isin(prediction.token, deferred_ids)
        is_eligible = jnp.where(jnp.any(is_ready), is_ready, is_eligible)
    return dataclasses.replace(canvas, is_eligible=is_eligible)


def decide(
    sampler: Sampler,
    key: Key[Array, ""],
    state: PyTree,
    canvas: Canvas,
    prediction: Prediction,
    decides: Bool[Array, ""],
) -> tuple[PyTree, Decision]:
    """The sampler's next state and its decision; the old state unless it decides.

    Raises:
      InputError: if its step returns something else, or arrays of a wrong form.
    """
    returned = sampler.step(key, state, canvas, prediction)
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    if not is_pair or not isinstance(returned[1], Decision):
        raise InputError(
            f"{type(sampler).__name__}.step must return its state and a Decision"
        )
    found, decision = returned
    _check_decision(sampler, decision, canvas.tokens.shape)
    # Keeps the carry's dtypes, whether the sampler's arithmetic was float32 or wider.
    found = jax.tree.map(lambda new, old: new.astype(old.dtype), found, state)
    found = jax.tree.map(lambda x, y: jnp.where(decides, x, y), found, state)
    return found, decision


def _check_decision(
    sampler: Sampler, decision: Decision, shape: tuple[int, ...]
) -> None:
    """Refuses arrays that would be broadcast: a scalar would be for all positions.

    Raises:
      InputError: for a field that is not an array with one entry per position, or one
        entry where it is of the row; for an `is_finished` whose steps have no bound.
    """
    for name, kind, dtype, size in (
        ("commit", "bool", jnp.bool_, shape),
        ("remask", "bool", jnp.bool_, shape),
        ("tokens", "int32", jnp.integer, shape),
        ("is_finished", "bool", jnp.bool_, ()),
    ):
        value = getattr(decision, name)
        if value is None and name != "commit":
            continue
        is_array = isinstance(value, jax.Array | np.ndarray)
        if is_array and value.shape == size and jnp.issubdtype(value.dtype, dtype):
            continue
        got = f"{value.dtype} {list(value.shape)}" if is_array else repr(value)
        entries = "one entry for each position of the row" if size else "of the row"
        raise InputError(
            f"{type(sampler).__name__}.step: decision.{name} ({got}) must be {kind} "
            f"{list(size)}, {entries}"
        )
    has_bound = type(sampler).extra_steps is not Sampler.extra_steps
    if decision.is_finished is not None and not has_bound:
        # Or its last blocks would be cut off by the bound of other rules.
        raise InputError(
            f"{type(sampler).__name__}.step: decision.is_finished must be None without "
            "a method extra_steps, which bounds the steps that it adds"
        )


def allowed(
    canvas: Canvas,
    decision: Decision,
    written: Int[Array, "l"],
    is_free: Bool[Array, "l"],
) -> tuple[Bool[Array, "l"], Bool[Array, "l"]]:
    """The commits and remasks of a decision that are allowed.

    Commits may rewrite decided positions.
    """
    commit = decision.commit & is_free & (canvas.is_eligible | ~canvas.is_mask)
    commit &= written != canvas.mask_id
    remask = jnp.zeros_like(commit)
    if decision.remask is not None:
        remask = decision.remask & is_free & (commit | ~canvas.is_mask)
    return commit, remask
