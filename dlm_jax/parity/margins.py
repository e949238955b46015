"""How close a decision was: one position's logits, and a step under a small change."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction, View
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.sampler import Sampler


@functools.partial(jax.jit, static_argnums=0, static_argnames="block_length")
def logits_at(
    denoiser: Denoiser,
    params: PyTree,
    tokens: Int[Array, "1 l"],
    without_prompt: Int[Array, "1 l"],
    is_valid: Bool[Array, "1 l"],
    position: Int[Array, ""] | int,
    guidance: Float[Array, ""] | float,
    block_length: int,
) -> Float[Array, "v"]:
    """The logits of one position in one row, with guidance.

    Args:
      denoiser: the model.
      params: its parameters.
      tokens: the canvas.
      without_prompt: the canvas with its prompt masked.
      is_valid: False at padding, which comes last.
      position: index in the row.
      guidance: scale of classifier-free guidance; 0 is off.
      block_length: of the run, which block-causal models count.
    """
    both = jnp.concatenate([tokens, without_prompt])
    columns = jnp.broadcast_to(jnp.arange(both.shape[1], dtype=jnp.int32), both.shape)
    visibility = jnp.repeat(is_valid[:, None], 2, axis=0)
    view = View(both, columns, visibility, sees_first=True, block_length=block_length)
    region = jnp.full((2, 1), position, jnp.int32)
    # What is compared with other code is computed as exactly as the dtype allows.
    head = denoiser.head(params)
    wide = jnp.promote_types(head.dtype, jnp.float32)
    with full_precision(denoiser, params):
        hidden, _ = denoiser.denoise(params, view, region, ())
        logits = jnp.matmul(hidden[:, 0], head.T, preferred_element_type=wide)
    return logits[1] + (guidance + 1) * (logits[0] - logits[1])


class Perturbed(Sampler):
    """A sampler that sees one step's logits changed by +-scale, signs at random.

    Attributes:
      inner: the sampler.
      scale: of the change.
      seed: of the signs.
      only_step: the step.
    """

    inner: Sampler
    scale: float = 0.0
    seed: int = 0
    only_step: int = 0

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.needs

    def init(self, canvas: Canvas) -> PyTree:
        return self.inner.init(canvas)

    def view(self, canvas: Canvas) -> View:
        return self.inner.view(canvas)

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        return self.inner.region(canvas)

    def adjust(
        self,
        state: PyTree,
        canvas: Canvas,
        region: Int[Array, "r"],
        token_ids: Int[Array, "v"],
        logits: Float[Array, "r v"],
    ) -> Float[Array, "r v"]:
        logits = self.inner.adjust(state, canvas, region, token_ids, logits)
        key = jax.random.fold_in(jax.random.key(self.seed), token_ids[0])
        sign = jax.random.rademacher(key, logits.shape, logits.dtype)
        scale = jnp.where(canvas.num_forwards == self.only_step, self.scale, 0)
        return logits + scale.astype(logits.dtype) * sign

    def step(
        self, key: Key[Array, ""], state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        return self.inner.step(key, state, canvas, prediction)

    def max_steps(self, num_blanks: int) -> int:
        return self.inner.max_steps(num_blanks)

    def extra_steps(self, num_blocks: int) -> int:
        return self.inner.extra_steps(num_blocks)
