"""SDAR's dynamic rule: all above a threshold, but at least a quota."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.samplers import select
from dlm_jax.samplers.schedules import Quota, Schedule


class Dynamic(Sampler):
    """Commits all candidates above a confidence, but at least a quota, the best ones.

    The rule `low_confidence_dynamic` of SDAR's released code (arXiv:2510.06303).

    Attributes:
      threshold: probability; a candidate must exceed it. At 1 the schedule decides.
      schedule: the quota, the least number of tokens a step commits.
    """

    threshold: float = number(default=0.9, at_least=0, at_most=1)
    schedule: Schedule = Quota()

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        quota = self.schedule.count(canvas)
        # A confidence above the threshold is a doubt below 1 - threshold.
        doubt = select.doubt(prediction.log_prob)
        above = canvas.is_eligible & (doubt < 1 - self.threshold)
        best = select.top_k(prediction.log_prob, canvas.is_eligible, quota)
        return state, Decision(jnp.where(jnp.sum(above) < quota, best, above))

    def max_steps(self, num_blanks: int) -> int:
        return self.schedule.max_steps(num_blanks)

    def check(self, gen_length: int, block_length: int) -> None:
        self.schedule.check(gen_length, block_length)
