"""Cache plans: which forward a row needs next, and what a step recomputes.

A forward of a row is one of four kinds:

| kind | goes through the model | keys and values written | the sampler decides |
|---|---|---|---|
| REFRESH | the whole row | all | yes |
| STEP | a window of it | the window's | yes |
| PREFILL | the whole row | all | no |
| STORE | a window whose tokens are final | the window's | no |

Approximate caches need REFRESH and STEP, exact ones PREFILL, STEP and STORE. Without a
cache every forward is a REFRESH, and nothing is written.
"""

import enum
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.core.canvas import Canvas
from dlm_jax.core.sampler import Rule


class Kind(enum.IntEnum):
    """Kinds of forward, see above."""

    REFRESH = 0
    STEP = 1
    PREFILL = 2
    STORE = 3

    @classmethod
    def is_whole(cls, kind: Int[Array, "*n"]) -> Array:
        """Whether the whole row goes through the model."""
        return (kind == cls.REFRESH) | (kind == cls.PREFILL)

    @classmethod
    def decides(cls, kind: Int[Array, "*n"]) -> Array:
        """Whether the sampler decides after it."""
        return (kind == cls.REFRESH) | (kind == cls.STEP)


class CachePlan(Rule):
    """Base of all cache plans, written for one row, as samplers are.

    As it stands it is the plan without a cache.

    Attributes:
      has_window: some forwards recompute a window of the row only.
      has_store: a block is over only when its final tokens have gone through a STORE.
      needs_block_causal: it is only right for models whose blocks do not see later
        ones.
    """

    has_window: ClassVar[bool] = False
    has_store: ClassVar[bool] = False
    needs_block_causal: ClassVar[bool] = False

    def kind(self, canvas: Canvas) -> Int[Array, ""]:
        """The forward that the row needs next, a `Kind`."""
        return jnp.int32(Kind.REFRESH)

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        """The columns that a STEP or STORE recomputes; l where there are fewer than w.

        Each column at most once. w may depend on static numbers only.
        """
        raise NotImplementedError

    def extra_forwards(self, length: int, block_length: int) -> int:
        """A bound on the forwards of a row after which the sampler decides nothing."""
        return 0
