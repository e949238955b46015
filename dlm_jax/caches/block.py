"""The exact cache of block-causal models: finished blocks never change."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas


class Block(CachePlan):
    """Keys and values of finished blocks, for models whose blocks see no later ones.

    One forward writes those of the given blocks before the first blank (PREFILL; none
    if there is no whole one), a forward of the active block against them precedes every
    decision (STEP), and one of the finished block writes its own (STORE). The tokens
    are those of full forwards. (SDAR's released loop; NFE counts all three.)
    """

    has_window: ClassVar[bool] = True
    has_store: ClassVar[bool] = True
    needs_block_causal: ClassVar[bool] = True

    def kind(self, canvas: Canvas) -> Int[Array, ""]:
        is_new = (canvas.num_forwards == 0) & (canvas.block_column > 0)
        has_mask = jnp.any(canvas.is_mask & canvas.is_open)
        kind = jnp.where(has_mask, jnp.int32(Kind.STEP), jnp.int32(Kind.STORE))
        return jnp.where(is_new, jnp.int32(Kind.PREFILL), kind)

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        # Given tokens of the block among them.
        return canvas.block_column + jnp.arange(canvas.block_length, dtype=jnp.int32)

    def extra_forwards(self, length: int, block_length: int) -> int:
        return 1 + -(-length // block_length)
