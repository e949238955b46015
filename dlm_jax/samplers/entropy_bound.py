"""EB-Sampler: as many tokens at once as an entropy bound allows."""

from collections.abc import Callable

import flax.struct
import jax
from jaxtyping import Array, Float, PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.errors import InputError
from dlm_jax.samplers import select
from dlm_jax.samplers.margin import Margin, probability_margin

# Error proxies rank positions by the distribution, not by the drawn token: the fields
# of Prediction that each reads, and its negative (best position first).
ERROR_PROXIES: dict[
    str, tuple[tuple[str, ...], Callable[[Prediction], Float[Array, "l"]]]
] = {
    "entropy": ((), lambda p: -p.entropy),
    "confidence": (("best_log_prob",), lambda p: p.best_log_prob),
    "margin": (Margin.needs, probability_margin),
}


class EntropyBound(Sampler):
    """Commits the longest prefix U by error proxy with sum_U H - max_U H <= gamma.

    EB-Sampler (arXiv:2505.24857, section 4). The left side bounds the joint dependence
    error of committing U at once. gamma 0 commits one position a step (and those of
    zero entropy), gamma = infinity all at once.

    Attributes:
      gamma: the bound, nats.
      error_proxy: a key of ERROR_PROXIES; the order positions are taken in (static).
    """

    gamma: float = number(default=0.1, at_least=0)
    error_proxy: str = flax.struct.field(pytree_node=False, default="entropy")

    def __post_init__(self):
        if self.error_proxy not in list(ERROR_PROXIES):
            raise InputError(
                f"error_proxy ({self.error_proxy!r}) must be one of "
                + ", ".join(ERROR_PROXIES)
            )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The entropy, and what the proxy reads."""
        return ("entropy", *ERROR_PROXIES[self.error_proxy][0])

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        score = ERROR_PROXIES[self.error_proxy][1](prediction)
        commit = select.entropy_bound(
            score, prediction.entropy, canvas.is_eligible, self.gamma
        )
        return state, Decision(commit)
