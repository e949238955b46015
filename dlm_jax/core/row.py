"""One row's bookkeeping: its start, its canvas, and how a decision is applied.

Everything here knows one row; `generate` maps it over the batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dlm_jax.core.cache import Kind
from dlm_jax.core.canvas import (
    Canvas,
    Missing,
    Prediction,
    Prompts,
    Trajectory,
    View,
)
from dlm_jax.core.decide import allowed, decide, let_deferred_wait
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler


@flax.struct.dataclass
class Frame:
    """What stays fixed during a row's generation."""

    can_stop: Bool[Array, ""]
    is_editable: Bool[Array, "l"]
    is_valid: Bool[Array, "l"]
    rank: Int[Array, "l"]  # index among the editable positions, g elsewhere
    block_of: Int[Array, "l"]  # of the editable positions, NO_BLOCK elsewhere
    blanks: Int[Array, "g"]
    num_blocks: Int[Array, ""]
    first_column: Int[Array, ""]  # of block 0


# Of positions in no block: more than any row has.
NO_BLOCK = 2**30


@flax.struct.dataclass
class Row:
    """What changes; the loop's carry, one per row."""

    tokens: Int[Array, "l"]
    is_mask: Bool[Array, "l"]
    block: Int[Array, ""]
    block_step: Int[Array, ""]
    block_masks: Int[Array, ""]
    is_final: Bool[Array, ""]  # see Canvas
    step: Int[Array, ""]
    num_forwards: Int[Array, ""]
    num_whole: Int[Array, ""]
    num_stores: Int[Array, ""]
    is_done: Bool[Array, ""]
    has_nan: Bool[Array, ""]
    commit_step: Int[Array, "l"]
    confidence: Float[Array, "l"]
    state: PyTree
    trajectory: PyTree  # a Trajectory, or None


def start(
    denoiser: Denoiser, options: Options, sampler: Sampler, prompts: Prompts
) -> tuple[Frame, Row]:
    """The frame and the first carry of one row."""
    is_blank = jnp.asarray(prompts.is_blank)
    length, g = is_blank.shape[0], options.gen_length
    num_blanks = jnp.sum(is_blank, dtype=jnp.int32)
    rank = jnp.where(is_blank, jnp.cumsum(is_blank, dtype=jnp.int32) - 1, g)
    blanks = jnp.full(g, length, jnp.int32)
    column = jnp.arange(length, dtype=jnp.int32)
    blanks = blanks.at[rank].set(column, mode="drop")
    # Blocks count blanks or, from column 0 of the row, columns.
    count = column if denoiser.is_block_causal else rank
    first = jnp.min(jnp.where(is_blank, count, length)) // options.block_length
    block_of = count // options.block_length - first
    frame = Frame(
        can_stop=jnp.asarray(prompts.can_stop),
        is_editable=is_blank,
        is_valid=jnp.asarray(prompts.is_valid),
        rank=rank,
        block_of=jnp.where(is_blank, block_of, NO_BLOCK),
        blanks=blanks,
        num_blocks=jnp.max(block_of, where=is_blank, initial=0) + 1,
        first_column=first * options.block_length,
    )
    zero = jnp.int32(0)
    trajectory = None
    if options.has_trajectory:
        steps = options.max_steps
        trajectory = Trajectory(
            canvas=jnp.full((steps + 1, length), denoiser.mask_id, jnp.int32),
            kind=jnp.full(steps, -1, jnp.int32),
            log_prob=jnp.full((steps, length), -jnp.inf),
            commit=jnp.zeros((steps, length), bool),
            remask=jnp.zeros((steps, length), bool),
            staleness=jnp.zeros(steps) if options.has_staleness else None,
        )
    row = Row(
        tokens=jnp.where(is_blank, denoiser.mask_id, prompts.tokens),
        is_mask=is_blank,
        block=zero,
        block_step=zero,
        block_masks=jnp.sum(frame.block_of == 0, dtype=jnp.int32),
        is_final=num_blanks == 0,
        step=zero,
        num_forwards=zero,
        num_whole=zero,
        num_stores=zero,
        is_done=(num_blanks == 0) | (options.max_steps < 1),
        has_nan=jnp.bool_(False),
        commit_step=jnp.full(length, -1, jnp.int32),
        confidence=jnp.zeros(length),
        state=(),
        trajectory=trajectory,
    )
    canvas = observe(denoiser, options, frame, row)
    row = dataclasses.replace(row, state=sampler.init(canvas))
    return frame, _record_canvas(row, row.is_done)


def first_canvas(
    denoiser: Denoiser, options: Options, sampler: Sampler, prompts: Prompts
) -> Canvas:
    """What a sampler sees of one row before its first forward."""
    return observe(denoiser, options, *start(denoiser, options, sampler, prompts))


def observe(denoiser: Denoiser, options: Options, frame: Frame, row: Row) -> Canvas:
    """What a sampler sees of one row."""
    is_open = frame.block_of <= row.block
    block_start = jnp.sum(frame.block_of < row.block, dtype=jnp.int32)
    block_column = frame.first_column + row.block * options.block_length
    return Canvas(
        tokens=row.tokens,
        is_mask=row.is_mask,
        is_editable=frame.is_editable,
        is_open=is_open,
        is_eligible=is_open & row.is_mask,
        is_valid=frame.is_valid,
        blanks=frame.blanks,
        block=row.block,
        block_start=block_start,
        block_column=block_column,
        block_step=row.block_step,
        block_masks=row.block_masks,
        is_final=row.is_final,
        num_blocks=frame.num_blocks,
        step=row.step,
        num_forwards=row.num_forwards,
        block_length=options.block_length,
        mask_id=denoiser.mask_id,
    )


def hide_prompt(denoiser: Denoiser, frame: Frame, canvas: Canvas, view: View) -> View:
    """The view with every known token of the prompt replaced by the mask."""
    is_prompt = frame.is_valid & ~frame.is_editable
    # A view starts with the canvas; what a sampler appends to it is not prompt.
    is_prompt = jnp.pad(is_prompt, (0, view.tokens.shape[0] - is_prompt.shape[0]))
    tokens = jnp.where(is_prompt, denoiser.mask_id, view.tokens)
    return dataclasses.replace(view, tokens=tokens)


def spread(
    length: int,
    region: Int[Array, "r"],
    is_known: Bool[Array, "r"],
    regional: Prediction,
    tokens: Int[Array, "l"],
) -> Prediction:
    """Brings a prediction from its region to the positions of the row.

    What is not known is as outside of the region.
    """
    region = jnp.where(is_known, region, length)

    def put(values: Array, elsewhere: Array | float) -> Array:
        elsewhere = jnp.full(length, elsewhere, values.dtype)
        return elsewhere.at[region].set(values, mode="drop")

    elsewhere = {"token": tokens, "entropy": jnp.inf}
    fields: dict[str, Any] = {
        field.name: Missing(field.name) for field in dataclasses.fields(regional)
    }
    fields |= {
        name: put(value, elsewhere.get(name, -jnp.inf))
        for name in fields
        if (value := getattr(regional, name)) is not None
    }
    fields["is_known"] = put(jnp.ones(region.shape, bool), False)
    return Prediction(**fields)


def advance(
    denoiser: Denoiser,
    options: Options,
    sampler: Sampler,
    key: Key[Array, ""],
    frame: Frame,
    row: Row,
    canvas: Canvas,
    prediction: Prediction,
    kind: Int[Array, ""],
    staleness: Float[Array, ""] | None = None,
) -> Row:
    """One step of one row: the sampler's decision, the writes, the next block.

    After a forward of a kind that decides nothing, only the row's counts change, and
    its block if that is stored.
    """
    # The sampler's decision.
    decides = Kind.decides(kind)
    has_nan = decides & jnp.any(canvas.is_eligible & jnp.isnan(prediction.log_prob))
    canvas = let_deferred_wait(options, canvas, prediction)
    state, decision = decide(sampler, key, row.state, canvas, prediction, decides)

    # Write the commits that are allowed, then remasks.
    is_free = canvas.is_open & prediction.is_known & ~has_nan & decides
    written = prediction.token if decision.tokens is None else decision.tokens
    commit, remask = allowed(canvas, decision, written, is_free)
    tokens = jnp.where(commit, written, row.tokens)
    tokens = jnp.where(remask, denoiser.mask_id, tokens)
    is_mask = (row.is_mask & ~commit) | remask
    commit_step = jnp.where(commit, row.num_forwards, row.commit_step)
    confidence = jnp.where(commit, jnp.exp(prediction.log_prob), row.confidence)

    # Whether the block is over. A stop with nothing undecided before it ends the row,
    # at once or with its block.
    is_final = ~jnp.any(is_mask & canvas.is_open)
    if decision.is_finished is not None:
        is_final &= jnp.where(decides, decision.is_finished, row.is_final)
    is_over = is_final
    if options.cache.has_store:
        is_over &= kind == Kind.STORE
    if options.stop_ids:
        is_tail, has_stopped = _tail(options, frame, tokens, is_mask)
        if not options.early_stop:
            is_tail &= is_over & (frame.block_of > row.block)
            has_stopped = jnp.any(is_tail)
        # The rest of the row needs no forward, and no store.
        is_over |= has_stopped
        tokens = jnp.where(is_tail, denoiser.eos_id, tokens)
        is_mask &= ~is_tail
        commit_step = jnp.where(is_tail, -1, commit_step)

    # Undecided positions have no commit step, and no confidence.
    commit_step = jnp.where(is_mask, -1, commit_step)
    confidence = jnp.where(commit_step < 0, 0, confidence)

    # The row's counts, and its next block.
    block = jnp.where(is_over, _next_block(options, frame, row, is_mask), row.block)
    is_open = frame.block_of <= block
    num_forwards = row.num_forwards + 1
    new = Row(
        tokens=tokens,
        is_mask=is_mask,
        block=block,
        block_step=jnp.where(is_over, 0, row.block_step + decides),
        block_masks=jnp.where(
            is_over, jnp.sum(is_mask & is_open, dtype=jnp.int32), row.block_masks
        ),
        is_final=jnp.where(is_over, ~jnp.any(is_mask & is_open), is_final),
        step=row.step + decides,
        num_forwards=num_forwards,
        num_whole=row.num_whole + Kind.is_whole(kind),
        num_stores=row.num_stores + (kind == Kind.STORE),
        is_done=(is_over & ~jnp.any(is_mask))
        | has_nan
        | (num_forwards >= options.max_steps),
        has_nan=has_nan,
        commit_step=commit_step,
        confidence=confidence,
        state=state,
        trajectory=row.trajectory,
    )

    recorded = {"kind": kind, "commit": commit, "remask": remask}
    recorded |= {"log_prob": prediction.log_prob, "staleness": staleness}
    new = _record_forward(new, row.num_forwards, recorded)
    return _record_canvas(new, new.is_done)


def _next_block(
    options: Options, frame: Frame, row: Row, is_mask: Bool[Array, "l"]
) -> Int[Array, ""]:
    """The next block with a mask.

    With an exact cache the next one, mask or not: it must be stored.
    """
    following = row.block + 1
    if not options.cache.has_store:
        following = jnp.min(frame.block_of, where=is_mask, initial=NO_BLOCK)
        following = jnp.maximum(following, row.block + 1)
    return following


def _tail(
    options: Options, frame: Frame, tokens: Int[Array, "l"], is_mask: Bool[Array, "l"]
) -> tuple[Bool[Array, "l"], Bool[Array, ""]]:
    """Positions after the first stop, if nothing before it is undecided.

    And whether there is such a stop; it may be the last position.
    """
    is_stop = jnp.isin(tokens, jnp.array(options.stop_ids, jnp.int32))
    is_stop &= frame.is_editable & ~is_mask & frame.can_stop
    stop = jnp.min(jnp.where(is_stop, frame.rank, options.gen_length))
    is_clear = ~jnp.any(is_mask & (frame.rank < stop))
    has_stopped = jnp.any(is_stop) & is_clear
    return frame.is_editable & (frame.rank > stop) & is_clear, has_stopped


def _record_forward(
    row: Row, index: Int[Array, ""], recorded: Mapping[str, Array | None]
) -> Row:
    """Writes what is recorded of a forward, if anything is."""
    if row.trajectory is None:
        return row
    arrays = {
        name: getattr(row.trajectory, name).at[index].set(value)
        for name, value in recorded.items()
        if value is not None
    }
    trajectory = dataclasses.replace(row.trajectory, **arrays)
    return dataclasses.replace(row, trajectory=trajectory)


def _record_canvas(row: Row, is_last: Bool[Array, ""]) -> Row:
    """Writes what the next forward sees; the final canvas to all later steps."""
    if row.trajectory is None:
        return row
    canvas = row.trajectory.canvas
    step = jnp.arange(canvas.shape[0])
    now = row.num_forwards
    is_here = (step == now) | (is_last & (step > now))
    canvas = jnp.where(is_here[:, None], row.tokens, canvas)
    trajectory = dataclasses.replace(row.trajectory, canvas=canvas)
    return dataclasses.replace(row, trajectory=trajectory)
