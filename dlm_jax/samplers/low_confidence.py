"""LLaDA's low-confidence remasking: the most confident candidates are kept."""

from jaxtyping import Array, Float, Key

from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.samplers.ordered import Ordered


class LowConfidence(Ordered):
    """Commits the candidates of highest probability.

    The order of LLaDA (arXiv:2502.09992, section 2.4) and MaskGIT (arXiv:2202.04200).
    With `schedule=linear(steps=...)` it is LLaDA's released `generate`.

    Attributes:
      schedule: tokens per step; one by default.
    """

    def score(
        self, key: Key[Array, ""], canvas: Canvas, prediction: Prediction
    ) -> Float[Array, "l"]:
        return prediction.log_prob
