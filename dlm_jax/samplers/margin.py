"""Order by the margin between the two most probable tokens."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.samplers import select
from dlm_jax.samplers.ordered import Ordered


def probability_margin(prediction: Prediction) -> Float[Array, "l"]:
    """p1 - p2 - 1 of the two most probable tokens; reads what `Margin.needs` names.

    The 1 is taken off first, so that margins of nearly 1 keep their digits.
    """
    best, runner_up = prediction.best_log_prob, prediction.runner_up_log_prob
    return -select.doubt(best) - jnp.exp(runner_up)


class Margin(Ordered):
    """Commits the positions of largest p1 - p2 (top-K margin, arXiv:2502.06768).

    Attributes:
      schedule: tokens per step; one by default.
    """

    needs: ClassVar[tuple[str, ...]] = ("best_log_prob", "runner_up_log_prob")

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Float[Array, "l"]:
        return probability_margin(prediction)
