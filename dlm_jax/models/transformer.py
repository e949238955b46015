"""What families of transformers share: running their blocks, and their cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.models import attention, stack
from dlm_jax.models.attention import Attention
from dlm_jax.models.family import Module
from dlm_jax.models.stack import Cache

# (query, key, value) -> attended values, see `attention.Attention`.
Attend = Callable[[Array, Array, Array], Array]


class Transformer(Module):
    """A module with blocks that attend, their weights stacked over layers.

    Its config has `n_layers`, `n_kv_heads` and `head_dim`.

    Attributes:
      blocks: the stacked weights of all transformer blocks.
      attention: one of `dlm_jax.models.attention`.
      way: how the blocks are computed; None for the backend's own way.
    """

    blocks: nnx.Module
    attention: Attention
    way: stack.Way | None

    def use_defaults(self) -> None:
        """Leaves the kernel and the way of running blocks to the backend."""
        self.attention = attention.best
        self.way = None

    @property
    def chosen_way(self) -> stack.Way:
        """How the blocks are computed here."""
        return self.way or stack.way_on(jax.default_backend())

    def attend(self, visibility: Bool[Array, "b #w m"], sees_first: bool) -> Attend:
        """The model's attention where this is visible; see `Module.hidden`."""

        def attend(query: Array, key: Array, value: Array) -> Array:
            return self.attention(query, key, value, visibility, sees_first)

        return attend

    def run_blocks(
        self,
        block: stack.Block,
        x: Float[Array, "b w d"],
        region: Int[Array, "b r"] | None,
        cache: Cache | None,
        columns: Int[Array, "b w"] | None,
    ) -> tuple[Float[Array, "b r d"], Cache | None]:
        """Runs all blocks; the output at a region, before the final norm.

        Args:
          block: one of them, see `stack.run`.
          x: embedded tokens.
          region: see `Module.hidden`.
          cache: see `Module.hidden`.
          columns: see `Module.hidden`.
        """
        weights = nnx.to_pure_dict(nnx.state(self.blocks))
        if self.chosen_way.is_by_head:
            weights = stack.by_head(weights, self.config.head_dim)
        x, cache = stack.run(
            block,
            x,
            weights,
            cache=cache,
            columns=columns,
            way=self.chosen_way,
        )
        if region is not None:
            x = jnp.take_along_axis(x, region[..., None], axis=1, mode="clip")
        return x, cache

    def init_cache(
        self, batch_size: int, length: int, model_axis: str | None = None
    ) -> Cache:
        """See `Module.init_cache`."""
        num_parts = 1 if model_axis is None else jax.lax.axis_size(model_axis)
        heads = self.config.n_kv_heads // num_parts
        shape = (batch_size, length, heads, self.config.head_dim)
        return stack.empty(self.config.n_layers, shape, self.head.dtype)
