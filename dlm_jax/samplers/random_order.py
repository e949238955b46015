"""Random order (LLaDA's `remasking='random'`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.samplers.ordered import Ordered


class Random(Ordered):
    """Commits positions in uniformly random order (arXiv:2502.09992, section 2.4).

    Attributes:
      schedule: tokens per step; one by default.
    """

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Float[Array, "l"]:
        # A key per position: one draw of shape [l] could depend on the padding.
        positions = jnp.arange(canvas.tokens.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        return jax.vmap(jax.random.uniform)(keys)
