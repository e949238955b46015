"""Base of the samplers that commit a scheduled number of tokens in some order."""

from typing import ClassVar

import jax
from jaxtyping import Array, Key, Num, PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler
from dlm_jax.samplers import select
from dlm_jax.samplers.schedules import Fixed, Schedule


class Ordered(Sampler):
    """Commits the `schedule.count` best positions by `score`.

    Attributes:
      schedule: tokens per step; one by default.
    """

    schedule: Schedule = Fixed()
    needs: ClassVar[tuple[str, ...]] = ()

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Num[Array, "l"]:
        """Ranks the positions.

        Args:
          key: see `Sampler.step`.
          canvas: the row before the step.
          prediction: what the model says of it.

        Returns:
          A number for every position, [l]; the highest are committed first, of equal
          ones the lowest position.
        """
        raise NotImplementedError

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        score = self.score(key, canvas, prediction)
        count = self.schedule.count(canvas)
        return state, Decision(select.top_k(score, canvas.is_eligible, count))

    def max_steps(self, num_blanks: int) -> int:
        return self.schedule.max_steps(num_blanks)

    def check(self, gen_length: int, block_length: int) -> None:
        self.schedule.check(gen_length, block_length)
