"""Fast-dLLM's prefix cache: a step recomputes the active block and what follows it."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.caches.approximate import Approximate
from dlm_jax.core.canvas import Canvas


class Prefix(Approximate):
    """What lies before the active block is kept (arXiv:2505.22618, section 3.2).

    A step recomputes the blanks of the active block and of all later ones; given tokens
    between them (of an infilling) keep what the last refresh computed. The window is as
    wide as all blanks in every block, since shapes are static.
    """

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        rank = canvas.block_start + jnp.arange(canvas.blanks.shape[0])
        return canvas.blanks.at[rank].get(mode="fill", fill_value=canvas.length)
