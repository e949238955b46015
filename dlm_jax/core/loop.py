"""The generation loop; it knows no sampler and no model.

One `lax.while_loop` over fixed-shape arrays. Every row has its own block, step count,
key and stop; a row that is done leaves its slot to the next one that waits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from dlm_jax.core import row
from dlm_jax.core import slots as queue
from dlm_jax.core.canvas import Generation, HostArray, Prompts
from dlm_jax.core.checks import check_keys, check_tokens, prepare
from dlm_jax.core.denoiser import Denoiser, full_precision
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
    n, length = prompts.tokens.shape
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
    cache = denoiser.init_cache(params, forwards_of(options) * b, length)
    return todo, queue.refill(queue.start(todo.jobs, rows, b, cache), todo)


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
    n, length = carry.rows.tokens.shape
    num_forwards = forwards_of(options)
    initial = denoiser.init_cache(params, num_forwards * carry.ids.shape[0], length)

    def refill(carry: Queue) -> Queue:
        filled = queue.refill(carry, todo)
        is_new = filled.ids != carry.ids
        cache = queue.reset(is_new, carry.cache, initial, num_forwards)
        return dataclasses.replace(filled, cache=cache)

    def is_running(carry: Queue) -> Bool[Array, ""]:
        return ~jnp.all(carry.slots.is_done) & (carry.iteration < until)

    def iterate(carry: Queue) -> Queue:
        slots, cache = iteration(
            denoiser, params, options, carry.jobs, carry.slots, carry.cache
        )
        carry = dataclasses.replace(
            carry, slots=slots, cache=cache, iteration=carry.iteration + 1
        )
        is_ready = jnp.any(slots.is_done & (carry.ids < n))
        return jax.lax.cond(is_ready, refill, lambda carry: carry, carry)

    return jax.lax.while_loop(is_running, iterate, carry)


def forwards_of(options: Options) -> int:
    """Forwards of a row in one iteration: one, and one more with guidance."""
    return 1 if options.guidance is None else 2


def finish(rows: Row, ends: Int[HostArray, "... n"]) -> Generation:
    """The results of a queue's rows; rows that are not done are as they started."""
    return Generation(
        tokens=rows.tokens,
        num_steps=rows.step,
        last_iteration=ends,
        commit_step=rows.commit_step,
        confidence=rows.confidence,
        is_complete=~rows.is_mask.any(axis=-1),
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
) -> tuple[Row, PyTree]:
    """One forward and one step of all rows in the slots."""
    sampler, keys, frames = jobs.sampler, jobs.keys, jobs.frames
    canvas = jax.vmap(functools.partial(row.observe, denoiser, options))(frames, rows)
    view = jax.vmap(lambda s, c: s.view(c))(sampler, canvas)
    region = jax.vmap(lambda s, c: s.region(c))(sampler, canvas)
    shown, shown_region = view, region
    if options.guidance is not None:
        # The second half of the batch does not see the prompt.
        hidden_prompt = jax.vmap(functools.partial(row.hide_prompt, denoiser))(
            frames, canvas, view
        )
        shown, shown_region = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y]),
            (view, region),
            (hidden_prompt, region),
        )
    head = denoiser.head(params)
    with full_precision(denoiser, params, options.precision):
        hidden, cache = denoiser.denoise(params, shown, shown_region, cache)
    hidden = hidden.reshape(-1, *region.shape, hidden.shape[-1])
    length = rows.tokens.shape[1]
    step_keys = jax.vmap(jax.random.fold_in)(keys, rows.step)
    draw_keys, rule_keys = (
        jax.vmap(jax.random.fold_in, (0, None))(step_keys, purpose)
        for purpose in range(2)
    )

    def adjust(token_ids: Array, logits: Array) -> Array:
        return jax.vmap(lambda s, *row: s.adjust(*row), (0, 0, 0, 0, None, 0))(
            sampler, rows.state, canvas, region, token_ids, logits
        )

    with full_precision(denoiser, params, options.precision):
        regional = predict(
            hidden,
            head,
            jnp.take_along_axis(rows.tokens, region, axis=1, mode="clip"),
            sampler.needs,
            mask_id=denoiser.mask_id,
            keys=draw_keys,
            positions=region,
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
    prediction = jax.vmap(functools.partial(row.spread, length))(
        region, regional, rows.tokens
    )
    advance = functools.partial(row.advance, denoiser, options)
    return jax.vmap(advance)(
        sampler, rule_keys, frames, rows, canvas, prediction
    ), cache
