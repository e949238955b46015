"""Fast-dLLM's dual cache: a step recomputes the active block."""

from jaxtyping import Array, Int

from dlm_jax.caches.approximate import Approximate
from dlm_jax.core.canvas import Canvas


class Dual(Approximate):
    """Everything but the active block is kept (arXiv:2505.22618, section 3.2).

    A step recomputes the block's blanks, against keys and values of the prompt, of
    earlier blocks and of the masks behind it as the last refresh left them.
    """

    def window(self, canvas: Canvas) -> Int[Array, "w"]:
        return canvas.block_blanks
