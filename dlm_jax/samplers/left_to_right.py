"""Autoregressive order."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.samplers.ordered import Ordered


class LeftToRight(Ordered):
    """Commits the leftmost masks first, the order of autoregressive models.

    Attributes:
      schedule: tokens per step; one by default.
    """

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Int[Array, "l"]:
        return -jnp.arange(canvas.tokens.shape[0])
