"""Saber as its released code runs it, for comparison with its outputs."""

from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.samplers import select


@flax.struct.dataclass
class SaberReleasedState:
    """What the released loop remembers, as doubts: 1 - probability.

    Attributes:
      committed: float [l]; doubt at the last commit, of every position ever
        committed, remasked ones included.
      was_committed: bool [l].
      previous: float [l]; doubt at the previous step, 1 before the first.
      has_previous: bool [l]; False at what lay past the block's end in that step.
    """

    committed: Float[Array, "l"]
    was_committed: Bool[Array, "l"]
    previous: Float[Array, "l"]
    has_previous: Bool[Array, "l"]


class SaberReleased(Sampler):
    """The released code of Saber (arXiv:2510.18165), quirks included.

    What differs from the paper: the confidence of a position is that of its current
    best token, not of the held one; tokens committed in the same step can be taken
    back; the smallest *rise* since the previous step is taken back, with 0 before the
    first step; tau is 1 before the first commit and also averages remasked positions;
    when fewer than n masks are left, the n best include decided positions, from column
    0 on.

    Attributes:
      n: least number of tokens a step drafts (static).
    """

    n: int = flax.struct.field(pytree_node=False, default=2)
    needs: ClassVar[tuple[str, ...]] = ()
    may_rewrite: ClassVar[bool] = True
    may_remask: ClassVar[bool] = True
    may_remask_fresh: ClassVar[bool] = True

    def __post_init__(self):
        if type(self.n) is not int or self.n < 1:
            raise InputError(f"n ({self.n!r}) must be an integer of at least 1")

    def init(self, canvas: Canvas) -> SaberReleasedState:
        zeros = jnp.zeros(canvas.tokens.shape)
        no = jnp.zeros(canvas.tokens.shape, bool)
        return SaberReleasedState(
            committed=zeros, was_committed=no, previous=zeros + 1, has_previous=~no
        )

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        # The first n columns can enter the n best when masks run out.
        return jnp.concatenate([jnp.arange(self.n, dtype=jnp.int32), canvas.blanks])

    def step(
        self,
        key: jax.Array,
        state: SaberReleasedState,
        canvas: Canvas,
        prediction: Prediction,
    ) -> tuple[SaberReleasedState, Decision]:
        # Near 1, float32 has few different confidences, but many doubts 1 - c.
        doubt = select.doubt(prediction.log_prob)
        positions = jnp.arange(doubt.shape[0])
        # The released code counts columns: everything before the block's end.
        last = jnp.max(jnp.where(canvas.is_open, positions, -1))
        is_reached = canvas.is_valid & (positions <= last)

        counted = state.was_committed & is_reached
        mean = jnp.sum(state.committed, where=counted) / jnp.sum(counted)
        # Where tau is 1, no confidence is above it.
        bound = jnp.where(jnp.any(counted), mean, 0)
        above = canvas.is_eligible & (doubt < bound)
        # Decided positions rank behind every mask, lowest index first; not while masks
        # wait that the loop defers.
        num_masks = jnp.sum(canvas.is_open & canvas.is_mask)
        may_rewrite = canvas.is_valid & ~canvas.is_mask & (num_masks < self.n)
        may_rewrite &= prediction.is_known
        score = jnp.where(canvas.is_eligible, -doubt, -2)
        best = select.top_k(score, canvas.is_eligible | may_rewrite, jnp.int32(self.n))
        num_above = jnp.sum(above)
        draft = jnp.where(num_above < self.n, best, above)

        is_decided = canvas.is_open & (draft | ~canvas.is_mask)
        is_block_full = ~jnp.any(canvas.is_eligible & ~draft)
        count = jnp.maximum(self.n, num_above)
        num_back = jnp.minimum(jnp.maximum(self.n // 2, -(-count // 8)), count - 1)
        fall = doubt - state.previous
        may_fall = is_decided & state.has_previous & prediction.is_known
        remask = select.top_k(fall, may_fall, num_back)
        state = SaberReleasedState(
            committed=jnp.where(draft, doubt, state.committed),
            was_committed=state.was_committed | draft,
            # With a cache a step tells nothing of positions outside its window.
            previous=jnp.where(prediction.is_known, doubt, state.previous),
            has_previous=jnp.where(prediction.is_known, is_reached, state.has_previous),
        )
        return state, Decision(
            commit=draft & canvas.is_editable, remask=remask & ~is_block_full
        )
