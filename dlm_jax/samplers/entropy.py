"""Order by the entropy of the predicted distribution."""

from typing import ClassVar

from jaxtyping import Array, Float, Key

from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.samplers.ordered import Ordered


class Entropy(Ordered):
    """Commits the positions of lowest entropy (Dream, arXiv:2508.15487).

    Attributes:
      schedule: tokens per step; one by default.
    """

    needs: ClassVar[tuple[str, ...]] = ("entropy",)

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Float[Array, "l"]:
        return -prediction.entropy
