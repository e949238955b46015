"""Confidence-aware parallel decoding with a factor, as published and as released."""

import jax
from jaxtyping import PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction
from dlm_jax.core.sampler import Sampler, number
from dlm_jax.samplers import select


class Factor(Sampler):
    """Commits the longest run of ranks n with (n + 1) (1 - c_(n)) < factor.

    Fast-dLLM (arXiv:2505.22618, section 3.3); at least one candidate.

    Attributes:
      factor: the bound f.
    """

    factor: float = number(default=1.0, at_least=0)

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        doubt = select.doubt(prediction.log_prob)
        commit, _ = select.factor(doubt, canvas.is_eligible, self.factor)
        return state, Decision(commit)


class FactorReleased(Factor):
    """The factor rule of Fast-dLLM's released code.

    Its loop never tests the last of N candidates: when ranks 1 to N - 1 pass, all N are
    committed.
    """

    def step(
        self, key: jax.Array, state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        doubt = select.doubt(prediction.log_prob)
        _, commit = select.factor(doubt, canvas.is_eligible, self.factor)
        return state, Decision(commit)
