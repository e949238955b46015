"""How many tokens a step commits, for samplers with a fixed number of steps.

A schedule is a function of the canvas's counters; it never looks at a prediction.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int

from dlm_jax.errors import InputError
from dlm_jax.types import Canvas, Rule, number


class Schedule(Rule):
    """Base of all schedules."""

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        """Tokens to commit in this step."""
        raise NotImplementedError

    def max_steps(self, num_blanks: int) -> int:
        """A bound on the forwards needed to fill `num_blanks` blanks."""
        return num_blanks


def _block_steps(steps: Int[Array, ""] | int, canvas: Canvas) -> Int[Array, ""]:
    """Steps of each block when `steps` are divided among a row's blocks."""
    return jnp.maximum(steps // canvas.num_blocks, 1)


class Fixed(Schedule):
    """k tokens every step.

    Attributes:
      k: tokens.
    """

    k: int = number(default=1, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        return jnp.asarray(self.k)


class Linear(Schedule):
    """LLaDA's schedule (arXiv:2502.09992): equal shares, the remainder first.

    A block of m masks and s steps commits m // s tokens a step, the first m % s steps
    one more. The released loop also runs steps whose share is 0, which change nothing;
    here a block ends when it is full.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks.
    """

    steps: int = number(default=128, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        steps = _block_steps(self.steps, canvas)
        share = canvas.block_masks // steps
        is_early = canvas.block_step < canvas.block_masks % steps
        return jnp.maximum(share + is_early, 1)


class Cosine(Schedule):
    """MaskGIT's schedule (arXiv:2202.04200): floor(m cos(pi k / 2 s)) masks after k.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks.
    """

    steps: int = number(default=128, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        steps = _block_steps(self.steps, canvas)
        masks = jnp.sum(canvas.is_open & canvas.is_mask)
        progress = (canvas.block_step + 1) / steps
        left = jnp.floor(canvas.block_masks * jnp.cos(jnp.pi / 2 * progress))
        left = jnp.where(progress >= 1, 0, left).astype(jnp.int32)
        return jnp.maximum(masks - left, 1)


class Dream(Schedule):
    """Dream's schedule (arXiv:2508.15487): int(masks (1 - s / t)), all at the last.

    t and s are neighbours of linspace(1, eps, steps + 1). A step may commit nothing.
    Dream has one block; with several, each runs through its own times.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks (static: it
        bounds the loop).
      eps: the last time.
    """

    steps: int = flax.struct.field(pytree_node=False, default=128)
    eps: float = number(default=1e-3, at_least=0, at_most=1)

    def __post_init__(self):
        if type(self.steps) is not int or self.steps < 1:
            raise InputError(f"steps ({self.steps!r}) must be an integer of at least 1")

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        steps = _block_steps(self.steps, canvas)
        slope = (1 - self.eps) / steps
        t = 1 - slope * canvas.block_step
        masks = jnp.sum(canvas.is_open & canvas.is_mask)
        share = jnp.floor(masks * (slope / t)).astype(jnp.int32)
        return jnp.where(canvas.block_step >= steps - 1, masks, share)

    def max_steps(self, num_blanks: int) -> int:
        return max(self.steps, num_blanks)
