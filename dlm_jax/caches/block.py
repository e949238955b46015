"""The exact cache of block-causal models: finished blocks never change."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas


class Block(CachePlan):
    """Keeps finished blocks, for models whose blocks do not see later ones; exact.

    As in SDAR's released loop (arXiv:2510.06303), a row goes through three kinds of
    forward, and NFE counts all of them:

    - PREFILL, once, for the given blocks before the first blank; none if there is no
      such block.
    - STEP: the active block, against the blocks before it. The sampler decides.
    - STORE, once for each finished block: writes its final keys and values.

    The tokens are those of full forwards. A sampler that may return to finished blocks
    is refused: these are final.
    """

    has_window: ClassVar[bool] = True
    has_store: ClassVar[bool] = True
    needs_block_causal: ClassVar[bool] = True

    def kind(self, canvas: Canvas) -> Int[Array, ""]:
        is_new = (canvas.num_forwards == 0) & (canvas.block_column > 0)
        kind = jnp.where(canvas.is_final, jnp.int32(Kind.STORE), jnp.int32(Kind.STEP))
        return jnp.where(is_new, jnp.int32(Kind.PREFILL), kind)

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        # The whole block, with its given tokens.
        return canvas.block_column + jnp.arange(canvas.block_length, dtype=jnp.int32)

    def extra_forwards(self, length: int, block_length: int) -> int:
        return 1 + -(-length // block_length)
