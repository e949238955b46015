"""The generation loop; it knows no sampler and no model.

One `lax.while_loop` over fixed-shape arrays. Every row has its own block, step count,
key and stop; a row that is done leaves its slot to the next one that waits.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dlm_jax.core import forward, row
from dlm_jax.core import slots as queue
from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas, Generation, HostArray, Prediction, Prompts, View
from dlm_jax.core.checks import check_keys, check_tokens, prepare
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.forward import Part
from dlm_jax.core.options import Options
from dlm_jax.core.predict import predict
from dlm_jax.core.row import Row
from dlm_jax.core.sampler import Sampler
from dlm_jax.core.slots import Job, Queue, Todo


def generate(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    keys: Key[Array, "b"],
    options: Options,
) -> Generation:
    """Fills the blanks of a batch on one device.

    Compiles once per shape of `prompts`, type and static fields of `sampler`, and
    static fields of `options`. Scripts use `runner.DataParallel`, which runs the same
    loop on all local devices.

    Args:
      denoiser: the model.
      params: its parameters.
      sampler: the rule; a numeric field may be an array [b], one value per row.
      prompts: the batch, on the host or a device.
      keys: one random key per row, see `row_keys`.
      options: lengths, temperature, guidance, stops.

    Returns:
      The filled rows.

    Raises:
      InputError: naming the argument that does not fit.
    """
    sampler, prompts, options = prepare(denoiser, sampler, prompts, options)
    check_tokens(prompts, jax.eval_shape(denoiser.head, params).shape[0])
    return _sample(denoiser, params, sampler, prompts, keys, options)


def sample(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    keys: Key[Array, "b"],
    options: Options,
) -> Generation:
    """The traceable loop behind `generate`; takes what `prepare` returns.

    Raises:
      InputError: if there is not one key per row.
    """
    todo, carry = begin(denoiser, params, sampler, prompts, keys, options)
    until = jnp.int32(FOREVER)
    carry = proceed(denoiser, params, options, todo, carry, until)
    return finish(carry.rows, carry.ends)


# More iterations than any queue has.
FOREVER = np.iinfo(np.int32).max


def begin(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    keys: Key[Array, "n"],
    options: Options,
) -> tuple[Todo, Queue]:
    """The first rows in their slots, before any forward; traceable.

    Raises:
      InputError: if there is not one key per row.
    """
    n = prompts.tokens.shape[0]
    check_keys(keys, n)
    b = min(options.num_slots or n, n)
    start = functools.partial(row.start, denoiser, options)
    frames, rows = jax.vmap(start)(sampler, prompts)
    # The fullest rows first: long rows that start last would leave other slots idle.
    # Rows without a blank need no slot.
    num_blanks = jnp.sum(rows.is_mask, axis=1)
    todo = Todo(
        jobs=Job(sampler, keys, frames),
        order=jnp.argsort(jnp.where(rows.is_done, 1, -num_blanks), stable=True),
        num_open=jnp.sum(~rows.is_done, dtype=jnp.int32),
    )
    carry = queue.refill(queue.start(todo.jobs, rows, b), todo)
    if options.cache.has_window:
        observe = functools.partial(row.observe, denoiser, options)
        views = jax.vmap(lambda s, f, r: s.view(observe(f, r)))
        shown = jax.eval_shape(
            views, carry.jobs.sampler, carry.jobs.frames, carry.slots
        )
        size = forwards_of(options) * b, shown.tokens.shape[1]
        carry = dataclasses.replace(carry, cache=denoiser.init_cache(params, *size))
    return todo, carry


def proceed(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    todo: Todo,
    carry: Queue,
    until: Int[Array, ""],
) -> Queue:
    """Runs a queue until all rows are done, or up to an iteration; traceable.

    Stopping changes no result: the next call continues exactly where this one ended.
    """
    n = carry.rows.is_done.shape[0]

    def is_running(carry: Queue) -> Bool[Array, ""]:
        return ~jnp.all(carry.slots.is_done) & (carry.iteration < until)

    def iterate(carry: Queue) -> Queue:
        slots, cache = iteration(
            denoiser,
            params,
            options,
            carry.jobs,
            carry.slots,
            carry.cache,
            carry.iteration,
        )
        # The cache stays out of the next condition, which might copy it.
        carry = dataclasses.replace(
            carry, slots=slots, cache=(), iteration=carry.iteration + 1
        )
        is_ready = jnp.any(slots.is_done & (carry.ids < n))
        carry = jax.lax.cond(
            is_ready, lambda c: queue.refill(c, todo), lambda c: c, carry
        )
        return dataclasses.replace(carry, cache=cache)

    return jax.lax.while_loop(is_running, iterate, carry)


def _wiped(cache: PyTree, is_broken: Bool[Array, "b"]) -> PyTree:
    """The cache with zeros in the rows that are broken, in all their views."""

    def wipe(x: Array) -> Array:
        views = jnp.tile(is_broken, x.shape[0] // is_broken.shape[0])
        return jnp.where(views.reshape(-1, *[1] * (x.ndim - 1)), 0, x).astype(x.dtype)

    return jax.tree.map(wipe, cache)


def forwards_of(options: Options) -> int:
    """Views of a row: one, and one more with guidance."""
    return 1 if options.guidance is None else 2


def finish(rows: Row, ends: Int[HostArray, "... n"]) -> Generation:
    """The results of a queue's rows; rows that are not done are as they started."""
    return Generation(
        tokens=rows.tokens,
        num_steps=rows.num_forwards,
        num_whole=rows.num_whole,
        num_stores=rows.num_stores,
        last_iteration=ends,
        commit_step=rows.commit_step,
        confidence=rows.confidence,
        is_complete=~rows.is_mask.any(axis=-1) & rows.is_final,
        has_nan=rows.has_nan,
        trajectory=rows.trajectory,
    )


_sample = jax.jit(sample, static_argnums=0)


def iteration(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    jobs: Job,
    rows: Row,
    cache: PyTree,
    turn: Int[Array, ""] | int = 0,
) -> tuple[Row, PyTree]:
    """One forward and one step of the rows in the slots.

    Args:
      denoiser: the model.
      params: its parameters.
      options: of the run.
      jobs: what is fixed, of b rows.
      rows: what changes.
      cache: of the model, of all views of the rows; () without one.
      turn: the loop's iteration, see `forward.run`.
    """
    # What the model is shown, and what is wanted of it.
    sampler, frames = jobs.sampler, jobs.frames
    canvas = jax.vmap(functools.partial(row.observe, denoiser, options))(frames, rows)
    kind = jax.vmap(options.cache.kind)(canvas)
    asked = {
        "canvas": canvas,
        "view": _views(denoiser, options, jobs, canvas),
        "region": jax.vmap(lambda s, c: s.region(c))(sampler, canvas),
        "is_done": rows.is_done,
        "turn": turn,
    }

    # The forwards, and what they predict.
    predict_part = functools.partial(
        _predict, denoiser, params, options, jobs, rows, canvas
    )
    with full_precision(denoiser, params, options.precision):
        outputs = forward.run(
            denoiser,
            params,
            options,
            functools.partial(predict_part, rows.tokens, sampler.needs),
            kind=kind,
            cache=cache,
            **asked,
        )
        staleness = None
        if options.has_staleness:
            staleness = _staleness(
                denoiser, params, options, predict_part, outputs.prediction, asked
            )

    # The steps of the rows that took part.
    rule_keys = _step_keys(jobs, rows, _RULE)
    advance = jax.vmap(functools.partial(row.advance, denoiser, options))
    advanced = advance(
        sampler,
        rule_keys,
        frames,
        rows,
        canvas,
        outputs.prediction,
        outputs.kind,
        staleness,
    )
    rows = queue.where(outputs.is_served, advanced, rows)

    if not denoiser.is_block_causal:
        # A row that is new in its slot sees all columns, so any plan writes them first.
        return rows, outputs.cache
    # Of a block-causal model it sees what it has not written with weight 0. But 0 * NaN
    # is NaN, and what a store wrote nobody has looked at.
    is_nan = jnp.any(jnp.isnan(outputs.prediction.log_prob), axis=1)
    is_broken = rows.is_done & outputs.is_served & is_nan
    cache = jax.lax.cond(
        jnp.any(is_broken), lambda c: _wiped(c, is_broken), lambda c: c, outputs.cache
    )
    return rows, cache


# What a step's random numbers are for.
_DRAW, _RULE = range(2)


def _step_keys(jobs: Job, rows: Row, purpose: int) -> Key[Array, "b"]:
    """The random keys of the rows' next step, for one purpose."""
    keys = jax.vmap(jax.random.fold_in)(jobs.keys, rows.step)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def _views(denoiser: Denoiser, options: Options, jobs: Job, canvas: Canvas) -> View:
    """What the model is shown of all rows; under guidance also without prompts."""
    view = jax.vmap(lambda s, c: s.view(c))(jobs.sampler, canvas)
    view = dataclasses.replace(
        view,
        block_length=options.block_length,
        # Known of the view that hides padding alone.
        sees_first=type(jobs.sampler).view is Sampler.view,
    )
    if options.guidance is None:
        return view
    hide = jax.vmap(functools.partial(row.hide_prompt, denoiser))
    without_prompt = hide(jobs.frames, canvas, view)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), view, without_prompt)


def _predict(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    jobs: Job,
    rows: Row,
    canvas: Canvas,
    tokens: Int[Array, "b l"],
    needs: tuple[str, ...],
    part: Part,
) -> Prediction:
    """The statistics of a part's rows, of b; with `tokens` as the held ones."""
    if part.ids is not None:
        jobs, rows, canvas, tokens = jax.tree.map(
            lambda x: x[part.ids], (jobs, rows, canvas, tokens)
        )

    def adjust(token_ids: Array, logits: Array) -> Array:
        return jax.vmap(lambda s, *row: s.adjust(*row), (0, 0, 0, 0, None, 0))(
            jobs.sampler, rows.state, canvas, part.region, token_ids, logits
        )

    regional = predict(
        part.hidden,
        denoiser.head(params),
        held=jnp.take_along_axis(tokens, part.region, axis=1, mode="clip"),
        needs=needs,
        mask_id=denoiser.mask_id,
        keys=_step_keys(jobs, rows, _DRAW),
        positions=part.region,
        adjust=adjust,
        temperature=options.temperature,
        guidance=options.guidance,
        suppressed_ids=options.suppressed_ids,
        deferred_ids=options.deferred_ids,
        logits_dtype=options.logits_dtype,
        probability_dtype=options.probability_dtype,
        logits_bytes=options.logits_bytes,
        vocab_axis=denoiser.model_axis,
    )
    spread = jax.vmap(functools.partial(row.spread, canvas.length))
    return spread(part.region, part.is_known, regional, rows.tokens)


def _staleness(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    predict_part: Callable[..., Prediction],
    prediction: Prediction,
    asked: Mapping[str, Any],
) -> Float[Array, "b"]:
    """How far the candidates' log-probabilities are from a full forward's, at most.

    Args:
      denoiser: the model.
      params: its parameters.
      options: of the run.
      predict_part: `_predict` of the run.
      prediction: with the cache.
      asked: what `forward.run` is asked whatever the cache.
    """
    canvas = asked["canvas"]
    exact = forward.run(
        denoiser,
        params,
        dataclasses.replace(options, cache=CachePlan()),
        functools.partial(predict_part, prediction.token, ("held_log_prob",)),
        kind=jnp.full_like(asked["is_done"], Kind.REFRESH, jnp.int32),
        cache=(),
        **asked,
    ).prediction
    # A deferred candidate has no log-probability to compare.
    counts = (
        canvas.is_eligible & prediction.is_known & jnp.isfinite(prediction.log_prob)
    )
    error = jnp.where(counts, jnp.abs(prediction.log_prob - exact.held_log_prob), 0)
    return jnp.max(error, axis=1)
