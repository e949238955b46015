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
    """Kinds of forward.

    Attributes:
      REFRESH: the whole row goes through the model; the sampler decides.
      STEP: a window of the row does; the sampler decides.
      PREFILL: the whole row does, only to fill an exact cache.
      STORE: a window of final tokens does, only to fill an exact cache.
    """

    REFRESH = 0
    STEP = 1
    PREFILL = 2
    STORE = 3

    @classmethod
    def is_whole(cls, kind: Int[Array, "*n"]) -> Array:
        """Tells which forwards compute the whole row.

        Args:
          kind: int32 [...]; of each forward.

        Returns:
          bool [...].
        """
        return (kind == cls.REFRESH) | (kind == cls.PREFILL)

    @classmethod
    def decides(cls, kind: Int[Array, "*n"]) -> Array:
        """Tells after which forwards the sampler decides.

        Args:
          kind: int32 [...]; of each forward.

        Returns:
          bool [...].
        """
        return (kind == cls.REFRESH) | (kind == cls.STEP)


class CachePlan(Rule):
    """Base of all cache plans, written for one row, as samplers are.

    By itself it is the plan without a cache: every forward computes the whole row.

    The cache is not cleared for a new row. A plan must begin with a whole row, unless
    the model is block-causal and no column of the first window sees a column outside
    of it.

    Attributes:
      has_window: some forwards recompute a window of the row only.
      has_store: a block is over only when its final tokens have gone through a STORE.
        Samplers whose region is larger than a block are then refused.
      needs_block_causal: the plan is refused for models whose blocks see later ones.
    """

    has_window: ClassVar[bool] = False
    has_store: ClassVar[bool] = False
    needs_block_causal: ClassVar[bool] = False

    def kind(self, canvas: Canvas) -> Int[Array, ""]:
        """Chooses the next forward of a row.

        Args:
          canvas: the row before that forward.

        Returns:
          int32 []; a `Kind`. REFRESH by default.
        """
        return jnp.int32(Kind.REFRESH)

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        """Chooses the columns that a STEP or STORE recomputes.

        Only plans with `has_window` need it.

        Args:
          canvas: the row before that forward.

        Returns:
          int32 [w]; columns of the row, each at most once, and l (`canvas.length`)
          where there are fewer than w. w may depend on static numbers only.
        """
        raise NotImplementedError

    def extra_forwards(self, length: int, block_length: int) -> int:
        """Bounds the forwards of a row after which the sampler decides nothing.

        Args:
          length: columns of the padded row.
          block_length: columns per block.

        Returns:
          The bound; 0 by default.
        """
        return 0
