"""Fast-dLLM's prefix cache: a step recomputes the active block and what follows it."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.caches.approximate import Approximate
from dlm_jax.core.canvas import Canvas


class Prefix(Approximate):
    """What lies before the active block is kept (arXiv:2505.22618, section 3.2).

    A step recomputes the blanks of the active block and of all later ones. Given tokens
    among them, which an infilling has, are kept.
    """

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        rank = canvas.block_start + jnp.arange(canvas.blanks.shape[0])
        return canvas.blanks.at[rank].get(mode="fill", fill_value=canvas.length)
