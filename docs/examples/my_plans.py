"""A cache plan of one's own: the skeleton to copy."""

import flax.struct
import jax.numpy as jnp

import dlm_jax as dlm


class Vicinity(dlm.caches.Approximate):
    """A step recomputes the active block and some blanks behind it.

    The first steps of a block compute the whole row.
    """

    # It sets the window's width, so it is static: another value compiles again.
    num_after: int = flax.struct.field(pytree_node=False, default=8)
    num_first: int = dlm.number(default=2, at_least=1)

    def kind(self, canvas):
        """The forward that the row needs next."""
        is_first = canvas.block_step < self.num_first
        return jnp.where(is_first, dlm.caches.Kind.REFRESH, super().kind(canvas))

    def window(self, canvas):
        """The columns that a step recomputes; l where there are fewer."""
        rank = canvas.block_start + jnp.arange(canvas.block_length + self.num_after)
        return canvas.blanks.at[rank].get(mode="fill", fill_value=canvas.length)
