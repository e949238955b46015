"""Confidence-aware parallel decoding with a fixed threshold."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.samplers import select


class Threshold(Sampler):
    """Commits every candidate at or above a confidence, else the best one.

    Fast-dLLM (arXiv:2505.22618, section 3.3).

    Attributes:
      threshold: probability.
    """

    threshold: float = number(default=0.9, at_least=0, at_most=1)

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        # Near 1, float32 has few different probabilities, but many of their logarithms.
        bound = jnp.log(self.threshold)
        commit = select.above(prediction.log_prob, canvas.is_eligible, bound)
        return state, Decision(commit)
