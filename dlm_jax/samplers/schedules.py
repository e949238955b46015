"""How many tokens a step commits, for samplers with a fixed number of steps.

A schedule is a function of the canvas's counters; it never looks at a prediction.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dlm_jax.core.canvas import Canvas, HostArray
from dlm_jax.core.sampler import Rule, number
from dlm_jax.errors import InputError


class Schedule(Rule):
    """Base of all schedules; a subclass writes `count`."""

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        """Tells how many tokens a step commits.

        Args:
          canvas: the row before the step.

        Returns:
          int32 []; if fewer positions are eligible, all of them are committed.
        """
        raise NotImplementedError

    def max_steps(self, num_blanks: int) -> int:
        """Bounds the steps that fill a row.

        Args:
          num_blanks: the most blanks of a row.

        Returns:
          The bound; by default num_blanks, for at least one token a step.
        """
        return num_blanks

    def check(self, gen_length: int, block_length: int) -> None:
        """Checks that the schedule fits the lengths, see `Sampler.check`.

        Args:
          gen_length: the most blanks of a row.
          block_length: blanks per block, a divisor of gen_length.

        Raises:
          InputError: naming the field that does not fit.
        """


def _check_steps(
    schedule: Schedule, steps: HostArray | int, gen_length: int, block_length: int
) -> None:
    """Raises InputError unless `steps` can be divided equally among the blocks.

    LLaDA's released loop makes the same demand. Otherwise other steps than those asked
    for would run: 4 for 6 in 4 blocks, and for 3 too.

    Args:
      schedule: is named in the error.
      steps: of the whole generation, one value or one per row.
      gen_length: the most blanks of a row.
      block_length: blanks per block.
    """
    num_blocks = gen_length // block_length
    values = np.atleast_1d(steps)
    # What `canonical` accepts is at least 1, so that a multiple is enough for each.
    is_wrong = values % num_blocks != 0
    if is_wrong.any():
        raise InputError(
            f"{type(schedule).__name__}: steps ({values[is_wrong][0]}) must be a "
            f"multiple of the number of blocks ({num_blocks}, of gen_length "
            f"{gen_length} and block_length {block_length})"
        )


def _block_steps(steps: Int[Array, ""] | int, canvas: Canvas) -> Int[Array, ""]:
    """Steps of each block when `steps` are divided among a row's blocks.

    A row of an infilling may have fewer blocks than the call. Its own number need not
    divide `steps`: the remainder of the division is then not run.
    """
    return jnp.maximum(steps // canvas.num_blocks, 1)


class Fixed(Schedule):
    """k tokens every step.

    Attributes:
      k: tokens.
    """

    k: int = number(default=1, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        return jnp.asarray(self.k)


class Quota(Schedule):
    """SDAR's schedule (arXiv:2510.06303): equal shares of a block, the remainder first.

    A block of B positions commits B // steps tokens a step, the first B % steps steps
    one more. B is the block length, however many positions are open, so that a block
    that is partly given takes fewer steps. (`Linear` divides the blanks.) At least one
    token.

    Attributes:
      steps: forwards of each block.
    """

    steps: int = number(default=4, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        is_early = canvas.block_step < canvas.block_length % self.steps
        return jnp.maximum(canvas.block_length // self.steps + is_early, 1)


class Linear(Schedule):
    """LLaDA's schedule (arXiv:2502.09992): equal shares, the remainder first.

    A block of m masks and s steps commits m // s tokens a step, the first m % s steps
    one more. The released loop also runs steps whose share is 0, which change nothing;
    here a block ends when it is full.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks: a multiple of
        their number.
    """

    steps: int = number(default=128, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        steps = _block_steps(self.steps, canvas)
        share = canvas.block_masks // steps
        is_early = canvas.block_step < canvas.block_masks % steps
        return jnp.maximum(share + is_early, 1)

    def check(self, gen_length: int, block_length: int) -> None:
        _check_steps(self, self.steps, gen_length, block_length)


class Cosine(Schedule):
    """MaskGIT's schedule (arXiv:2202.04200): floor(m cos(pi k / 2 s)) masks after k.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks: a multiple of
        their number.
    """

    steps: int = number(default=128, at_least=1)

    def count(self, canvas: Canvas) -> Int[Array, ""]:
        steps = _block_steps(self.steps, canvas)
        masks = jnp.sum(canvas.is_open & canvas.is_mask)
        progress = (canvas.block_step + 1) / steps
        left = jnp.floor(canvas.block_masks * jnp.cos(jnp.pi / 2 * progress))
        left = jnp.where(progress >= 1, 0, left).astype(jnp.int32)
        return jnp.maximum(masks - left, 1)

    def check(self, gen_length: int, block_length: int) -> None:
        _check_steps(self, self.steps, gen_length, block_length)


class Dream(Schedule):
    """Dream's schedule (arXiv:2508.15487): int(masks (1 - s / t)), all at the last.

    t and s are neighbours of linspace(1, eps, steps + 1). A step may commit nothing.
    Dream has one block; with several, each runs through its own times.

    Attributes:
      steps: forwards of the whole generation, divided among the blocks: a multiple of
        their number (static: it bounds the loop).
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

    def check(self, gen_length: int, block_length: int) -> None:
        _check_steps(self, self.steps, gen_length, block_length)
