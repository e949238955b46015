"""Saber: accelerate as context grows, take back tokens whose confidence fell."""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.errors import InputError
from dlm_jax.samplers import select


@flax.struct.dataclass
class SaberState:
    """What Saber remembers of the committed positions, as doubts: 1 - probability.

    Attributes:
      committed: float [l]; doubt of each at its commit.
      previous: float [l]; doubt of the held token at the previous step.
    """

    committed: Float[Array, "l"]
    previous: Float[Array, "l"]


class Saber(Sampler):
    """Saber as published (arXiv:2510.18165, section 3).

    Every step drafts the masked positions whose confidence exceeds tau, the mean
    confidence that the committed positions had at their commit (bounded by the highest
    confidence in this step, which is tau before the first commit); the n best if the
    draft has fewer than n. The draft is committed. Then, among the positions committed
    before this step, the max(1, floor(|draft| / mu)) whose held token lost most
    probability since the previous step are remasked, but fewer than were committed: a
    step decides at least one more position than it takes back.

    Confidences are compared as doubts, 1 - c: near 1, float32 has few different
    confidences, and the order of the drops would be that of rounding errors.

    Attributes:
      n: least number of tokens a step drafts.
      mu: tokens drafted per token taken back.
      threshold: a fixed tau in place of the mean (ablation "fixed threshold").
      acceleration: draft by tau; if not, always the n best (ablation; static).
      backtracking: remask (if not: ablation; static).
    """

    n: int = number(default=2, at_least=1)
    mu: float = number(default=8.0, above=0)
    threshold: float | None = number(default=None, at_least=0, at_most=1)
    acceleration: bool = flax.struct.field(pytree_node=False, default=True)
    backtracking: bool = flax.struct.field(pytree_node=False, default=True)
    may_remask: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("acceleration", "backtracking"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InputError(f"{name} ({value!r}) must be True or False")
        # Also run inside transformations, where None stays None.
        if self.threshold is not None and not self.acceleration:
            raise InputError(
                f"threshold ({self.threshold}) has no effect without acceleration"
            )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """What backtracking compares."""
        return ("held_log_prob",) if self.backtracking else ()

    def init(self, canvas: Canvas) -> SaberState:
        unknown = jnp.ones(canvas.tokens.shape)
        return SaberState(committed=unknown, previous=unknown)

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        # Tokens of earlier blocks may be taken back.
        return canvas.blanks if self.backtracking else super().region(canvas)

    def step(
        self,
        key: jax.Array,
        state: SaberState,
        canvas: Canvas,
        prediction: Prediction,
    ) -> tuple[SaberState, Decision]:
        doubt = select.doubt(prediction.log_prob)
        is_committed = canvas.is_editable & ~canvas.is_mask
        draft = select.top_k(prediction.log_prob, canvas.is_eligible, self.n)
        if self.acceleration:
            # A confidence above tau is a doubt below 1 - tau.
            bound = self._bound(state, canvas, is_committed, doubt)
            above = canvas.is_eligible & (doubt < bound)
            draft = jnp.where(jnp.sum(above) < self.n, draft, above)

        committed = jnp.where(draft, doubt, state.committed)
        if not self.backtracking:
            return dataclasses.replace(state, committed=committed), Decision(draft)
        held = select.doubt(prediction.held_log_prob)
        num_drafted = jnp.sum(draft)
        num_back = jnp.maximum(1, (num_drafted / self.mu).astype(jnp.int32))
        num_back = jnp.minimum(num_back, num_drafted - 1)
        drop = held - state.previous
        may_fall = is_committed & canvas.is_open & prediction.is_known
        remask = select.top_k(drop, may_fall, num_back)
        # With a cache a step tells nothing of positions outside its window.
        seen = jnp.where(draft, doubt, held)
        previous = jnp.where(prediction.is_known, seen, state.previous)
        return SaberState(committed, previous), Decision(draft, remask)

    def _bound(
        self,
        state: SaberState,
        canvas: Canvas,
        is_committed: Array,
        doubt: Float[Array, "l"],
    ) -> float | Float[Array, ""]:
        """1 - tau."""
        if self.threshold is not None:
            return 1 - self.threshold
        least = jnp.min(doubt, where=canvas.is_eligible, initial=1)
        num_committed = jnp.sum(is_committed)
        mean = jnp.sum(state.committed, where=is_committed) / num_committed
        return jnp.where(num_committed > 0, jnp.maximum(mean, least), least)
