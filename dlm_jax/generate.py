"""The generation loop: masks, blocks, rows and keys; it knows no sampler and no model.

One `lax.while_loop` over fixed-shape arrays. Every row has its own block, step count,
key and stop; a row that is done keeps its values while others go on.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dlm_jax.errors import InputError
from dlm_jax.predict import NOISE_TILE, predict
from dlm_jax.types import (
    Canvas,
    Denoiser,
    Generation,
    Options,
    Prediction,
    Prompts,
    Sampler,
    Trajectory,
    View,
    canonical,
)


@flax.struct.dataclass
class _Frame:
    """What stays fixed during a row's generation."""

    is_editable: Bool[Array, "l"]
    is_valid: Bool[Array, "l"]
    rank: Int[Array, "l"]  # index among the editable positions, g elsewhere
    slots: Int[Array, "g"]
    num_blocks: Int[Array, ""]


@flax.struct.dataclass
class _Row:
    """What changes; the loop's carry, one per row."""

    tokens: Int[Array, "l"]
    is_mask: Bool[Array, "l"]
    block: Int[Array, ""]
    block_step: Int[Array, ""]
    block_masks: Int[Array, ""]
    step: Int[Array, ""]
    is_done: Bool[Array, ""]
    has_nan: Bool[Array, ""]
    commit_step: Int[Array, "l"]
    confidence: Float[Array, "l"]
    state: PyTree
    trajectory: Trajectory | None


def row_keys(seed: int, ids: Int[np.ndarray, "b"]) -> Key[Array, "b"]:
    """One random key per row, a function of the seed and the row's own id.

    A row's draws then depend on which prompt it is, not on its place in a batch.
    """
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.asarray(ids))


def generate(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    keys: Key[Array, "b"],
    options: Options,
) -> Generation:
    """Fills the blanks of a batch on one device.

    Compiles once per shape of `prompts`, type and static fields of `sampler`, and static
    fields of `options`. Scripts use `parallel.DataParallel`, which runs the same loop on
    all local devices.

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
    return _sample(denoiser, params, sampler, prompts, keys, options)


def prepare(
    denoiser: Denoiser, sampler: Sampler, prompts: Prompts, options: Options
) -> tuple[Sampler, Prompts, Options]:
    """Checks the arguments of `sample` on the host and brings them to canonical types.

    Raises:
      InputError: naming the argument that does not fit.
    """
    b, length = np.shape(prompts.tokens)
    block_length = options.block_length or options.gen_length
    if options.gen_length < 1:
        raise InputError(f"gen_length ({options.gen_length}) must be at least 1")
    if block_length < 1 or options.gen_length % block_length:
        raise InputError(
            f"gen_length ({options.gen_length}) must be a multiple of block_length "
            f"({block_length})"
        )
    if length > denoiser.max_length:
        raise InputError(
            f"row length ({length}) must be at most the model's context "
            f"({denoiser.max_length})"
        )
    if options.vocab_slice < 1 or options.vocab_slice % NOISE_TILE:
        raise InputError(
            f"vocab_slice ({options.vocab_slice}) must be a multiple of {NOISE_TILE}"
        )
    for name in ("temperature", "guidance"):
        value = getattr(options, name) or 0.0
        if not 0 <= value < np.inf:
            raise InputError(f"{name} ({value}) must be at least 0 and finite")
    is_blank = np.asarray(prompts.is_blank)
    is_valid = np.asarray(prompts.is_valid)
    if (is_blank & ~is_valid).any():
        raise InputError("prompts.is_blank must be False where is_valid is False")
    if (is_valid[:, 1:] & ~is_valid[:, :-1]).any():
        raise InputError("prompts.is_valid must be a run from column 0: pad at the end")
    most = int(is_blank.sum(axis=1).max(initial=0))
    if most > options.gen_length:
        raise InputError(
            f"gen_length ({options.gen_length}) must be at least the blanks of the "
            f"fullest row ({most})"
        )
    prompts = Prompts(
        tokens=jnp.asarray(prompts.tokens, jnp.int32),
        is_blank=jnp.asarray(is_blank),
        is_valid=jnp.asarray(is_valid),
    )
    max_steps = options.max_steps
    if max_steps is None:
        max_steps = sampler.max_steps(options.gen_length)
    options = dataclasses.replace(
        options,
        block_length=block_length,
        # None is part of the compiled program's structure, a value is not.
        temperature=options.temperature or None,
        guidance=options.guidance or None,
        max_steps=max_steps,
    )
    return canonical(sampler, (b,)), prompts, canonical(options)


def sample(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    keys: Key[Array, "b"],
    options: Options,
) -> Generation:
    """The traceable loop behind `generate`; takes what `prepare` returns."""
    frames, rows, cache = start(denoiser, params, sampler, prompts, options)

    def is_running(carry: tuple[_Row, PyTree]) -> Bool[Array, ""]:
        return ~jnp.all(carry[0].is_done)

    def iterate(carry: tuple[_Row, PyTree]) -> tuple[_Row, PyTree]:
        return iteration(denoiser, params, sampler, keys, options, frames, *carry)

    rows, _ = jax.lax.while_loop(is_running, iterate, (rows, cache))
    return Generation(
        tokens=rows.tokens,
        num_steps=rows.step,
        commit_step=rows.commit_step,
        confidence=rows.confidence,
        is_complete=~jnp.any(rows.is_mask, axis=1),
        has_nan=rows.has_nan,
        trajectory=rows.trajectory,
    )


_sample = jax.jit(sample, static_argnums=0)


def start(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    options: Options,
) -> tuple[_Frame, _Row, PyTree]:
    """What stays fixed, the rows before the first forward, and the model's cache."""
    begin = functools.partial(_start, denoiser, options)
    frames, rows = jax.vmap(begin)(sampler, prompts)
    forwards = 1 if options.guidance is None else 2
    b, length = prompts.tokens.shape
    return frames, rows, denoiser.init_cache(params, forwards * b, length)


def iteration(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    keys: Key[Array, "b"],
    options: Options,
    frames: _Frame,
    rows: _Row,
    cache: PyTree,
) -> tuple[_Row, PyTree]:
    """One forward of the whole batch and what every row makes of it."""
    canvas = jax.vmap(functools.partial(_observe, denoiser, options))(frames, rows)
    view = jax.vmap(lambda s, c: s.view(c))(sampler, canvas)
    region = jax.vmap(lambda s, c: s.region(c))(sampler, canvas)
    shown, shown_region = view, region
    if options.guidance is not None:
        # The second half of the batch does not see the prompt.
        hidden_prompt = jax.vmap(functools.partial(_hide_prompt, denoiser))(
            frames, canvas, view
        )
        shown, shown_region = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y]),
            (view, region),
            (hidden_prompt, region),
        )
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

    regional = predict(
        hidden,
        denoiser.head(params),
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
        confidence_dtype=options.confidence_dtype,
        vocab_slice=options.vocab_slice,
    )
    prediction = jax.vmap(functools.partial(_spread, length))(
        region, regional, rows.tokens
    )
    advance = functools.partial(_advance, denoiser, options)
    return jax.vmap(advance)(
        sampler, rule_keys, frames, rows, canvas, prediction
    ), cache


def _start(
    denoiser: Denoiser, options: Options, sampler: Sampler, prompts: Prompts
) -> tuple[_Frame, _Row]:
    """The frame and the first carry of one row."""
    is_blank = prompts.is_blank
    length, g = is_blank.shape[0], options.gen_length
    num_blanks = jnp.sum(is_blank, dtype=jnp.int32)
    rank = jnp.where(is_blank, jnp.cumsum(is_blank, dtype=jnp.int32) - 1, g)
    slots = jnp.full(g, length, jnp.int32)
    slots = slots.at[rank].set(jnp.arange(length, dtype=jnp.int32), mode="drop")
    frame = _Frame(
        is_editable=is_blank,
        is_valid=prompts.is_valid,
        rank=rank,
        slots=slots,
        num_blocks=jnp.maximum(-(-num_blanks // options.block_length), 1),
    )
    zero = jnp.int32(0)
    trajectory = None
    if options.has_trajectory:
        steps = options.max_steps
        trajectory = Trajectory(
            canvas=jnp.full((steps + 1, length), denoiser.mask_id, jnp.int32),
            log_prob=jnp.full((steps, length), -jnp.inf),
            commit=jnp.zeros((steps, length), bool),
            remask=jnp.zeros((steps, length), bool),
        )
    row = _Row(
        tokens=jnp.where(is_blank, denoiser.mask_id, prompts.tokens),
        is_mask=is_blank,
        block=zero,
        block_step=zero,
        block_masks=jnp.minimum(num_blanks, options.block_length),
        step=zero,
        is_done=(num_blanks == 0) | (options.max_steps < 1),
        has_nan=jnp.bool_(False),
        commit_step=jnp.full(length, -1, jnp.int32),
        confidence=jnp.zeros(length),
        state=(),
        trajectory=trajectory,
    )
    row = row.replace(state=sampler.init(_observe(denoiser, options, frame, row)))
    return frame, _record_canvas(row, row.is_done)


def _observe(
    denoiser: Denoiser, options: Options, frame: _Frame, row: _Row
) -> Canvas:
    """What a sampler sees of one row."""
    is_open = frame.rank < jnp.minimum(
        (row.block + 1) * options.block_length, options.gen_length
    )
    return Canvas(
        tokens=row.tokens,
        is_mask=row.is_mask,
        is_editable=frame.is_editable,
        is_open=is_open,
        is_eligible=is_open & row.is_mask,
        is_valid=frame.is_valid,
        slots=frame.slots,
        block=row.block,
        block_step=row.block_step,
        block_masks=row.block_masks,
        num_blocks=frame.num_blocks,
        step=row.step,
        block_length=options.block_length,
        mask_id=denoiser.mask_id,
    )


def _hide_prompt(
    denoiser: Denoiser, frame: _Frame, canvas: Canvas, view: View
) -> View:
    """The view with every known token of the prompt replaced by the mask."""
    is_prompt = frame.is_valid & ~frame.is_editable
    # A view starts with the canvas; what a sampler appends to it is not prompt.
    is_prompt = jnp.pad(is_prompt, (0, view.tokens.shape[0] - is_prompt.shape[0]))
    return view.replace(tokens=jnp.where(is_prompt, denoiser.mask_id, view.tokens))


def _spread(
    length: int, region: Int[Array, "r"], regional: Prediction, tokens: Int[Array, "l"]
) -> Prediction:
    """Brings a prediction from its region to the positions of the row."""

    def put(values: Array | None, elsewhere: Array) -> Array | None:
        return None if values is None else elsewhere.at[region].set(values, mode="drop")

    def outside(value: float) -> Array:
        return jnp.full(length, value, regional.log_prob.dtype)

    return Prediction(
        token=put(regional.token, tokens),
        log_prob=put(regional.log_prob, outside(-jnp.inf)),
        best_log_prob=put(regional.best_log_prob, outside(-jnp.inf)),
        runner_up_log_prob=put(regional.runner_up_log_prob, outside(-jnp.inf)),
        entropy=put(regional.entropy, outside(jnp.inf)),
        held_log_prob=put(regional.held_log_prob, outside(-jnp.inf)),
    )


def _advance(
    denoiser: Denoiser,
    options: Options,
    sampler: Sampler,
    key: Key[Array, ""],
    frame: _Frame,
    row: _Row,
    canvas: Canvas,
    prediction: Prediction,
) -> _Row:
    """One step of one row: the sampler's decision, the writes, the next block."""
    state, decision = sampler.step(key, row.state, canvas, prediction)
    # A sampler need not care whether its arithmetic was float32 or wider.
    state = jax.tree.map(lambda new, old: new.astype(old.dtype), state, row.state)
    has_nan = jnp.any(canvas.is_eligible & jnp.isnan(prediction.log_prob))
    commit = decision.commit & ~has_nan
    remask = jnp.zeros_like(commit)
    if decision.remask is not None:
        remask = decision.remask & ~has_nan
    written = prediction.token if decision.tokens is None else decision.tokens
    tokens = jnp.where(commit, written, row.tokens)
    tokens = jnp.where(remask, denoiser.mask_id, tokens)
    is_mask = (row.is_mask & ~commit) | remask
    commit_step = jnp.where(commit, row.step, row.commit_step)
    confidence = jnp.where(commit, jnp.exp(prediction.log_prob), row.confidence)

    if options.stop_ids:
        is_stop = jnp.isin(tokens, jnp.array(options.stop_ids, jnp.int32))
        is_stop &= frame.is_editable & ~is_mask
        stop = jnp.min(jnp.where(is_stop, frame.rank, options.gen_length))
        is_clear = ~jnp.any(is_mask & (frame.rank < stop))
        is_tail = frame.is_editable & (frame.rank > stop) & is_clear
        tokens = jnp.where(is_tail, denoiser.eos_id, tokens)
        is_mask &= ~is_tail
        commit_step = jnp.where(is_tail, -1, commit_step)

    is_undone = is_mask | remask
    commit_step = jnp.where(is_undone, -1, commit_step)
    confidence = jnp.where(commit_step < 0, 0, confidence)

    stays = jnp.any(is_mask & canvas.is_open)
    block = jnp.where(stays, row.block, row.block + 1)
    is_open = frame.rank < (block + 1) * options.block_length
    step = row.step + 1
    new = _Row(
        tokens=tokens,
        is_mask=is_mask,
        block=block,
        block_step=jnp.where(stays, row.block_step + 1, 0),
        block_masks=jnp.where(
            stays, row.block_masks, jnp.sum(is_mask & is_open, dtype=jnp.int32)
        ),
        step=step,
        is_done=~jnp.any(is_mask) | has_nan | (step >= options.max_steps),
        has_nan=has_nan,
        commit_step=commit_step,
        confidence=confidence,
        state=state,
        trajectory=row.trajectory,
    )
    if new.trajectory is not None:
        new = new.replace(
            trajectory=new.trajectory.replace(
                log_prob=new.trajectory.log_prob.at[row.step].set(prediction.log_prob),
                commit=new.trajectory.commit.at[row.step].set(commit),
                remask=new.trajectory.remask.at[row.step].set(remask),
            )
        )
    new = _record_canvas(new, new.is_done)
    return jax.tree.map(lambda x, y: jnp.where(row.is_done, x, y), row, new)


def _record_canvas(row: _Row, is_last: Bool[Array, ""]) -> _Row:
    """Writes the canvas that the next forward sees; the final one to all later steps."""
    if row.trajectory is None:
        return row
    canvas = row.trajectory.canvas
    step = jnp.arange(canvas.shape[0])
    is_here = (step == row.step) | (is_last & (step > row.step))
    canvas = jnp.where(is_here[:, None], row.tokens, canvas)
    return row.replace(trajectory=row.trajectory.replace(canvas=canvas))
