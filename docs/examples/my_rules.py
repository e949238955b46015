"""A sampler of one's own: the skeleton to copy."""

import jax.numpy as jnp

import dlm_jax as dlm


class Confident(dlm.Sampler):
    """Commits every candidate whose probability reaches a threshold."""

    threshold: float = 0.9

    def step(self, key, state, canvas, prediction):
        """Decides what to write: `commit` is a boolean for every position of a row."""
        bound = jnp.log(self.threshold)
        commit = dlm.select.above(prediction.log_prob, canvas.is_eligible, bound)
        return state, dlm.Decision(commit)
