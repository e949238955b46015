"""What the approximate caches share: when a row is refreshed."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas
from dlm_jax.core.sampler import number


class Approximate(CachePlan):
    """Base of plans that keep keys and values although what they depend on changes.

    The whole row is computed again when a block begins, as in Fast-dLLM
    (arXiv:2505.22618).

    Attributes:
      refresh_every: also refresh at every so many steps of a block; 0 never.
    """

    refresh_every: int = number(default=0, at_least=0)
    has_window: ClassVar[bool] = True

    def kind(self, canvas: Canvas) -> Int[Array, ""]:
        # A remainder by 0 has no meaning: a period that no block reaches instead.
        period = jnp.where(self.refresh_every > 0, self.refresh_every, 2**30)
        is_stale = canvas.block_step % period == 0
        return jnp.where(is_stale, jnp.int32(Kind.REFRESH), jnp.int32(Kind.STEP))
