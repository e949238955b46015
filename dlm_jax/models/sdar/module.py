"""SDAR: a block-causal transformer with Qwen3's layers, as a Flax NNX module.

Architecture and names follow the released checkpoints (arXiv:2510.06303). Position i's
logits predict token i: nothing shifts.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.models import layers, stack
from dlm_jax.models.sdar.config import SDARConfig
from dlm_jax.models.stack import Cache
from dlm_jax.models.transformer import Attend, Transformer


class Blocks(nnx.Module):
    """The weights of all transformer blocks, stacked over layers.

    Matrices are [n_layers, in, out], q_norm and k_norm [n_layers, head_dim].
    """

    def __init__(
        self, config: SDARConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ):
        n, d, f = config.n_layers, config.d_model, config.mlp_hidden_size
        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))

        def ones(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.ones(shape, dtype))

        self.input_layernorm = ones(n, d)
        self.q_proj = normal(n, d, q)
        self.k_proj = normal(n, d, kv)
        self.v_proj = normal(n, d, kv)
        self.q_norm = ones(n, config.head_dim)
        self.k_norm = ones(n, config.head_dim)
        self.o_proj = normal(n, q, d)
        self.post_attention_layernorm = ones(n, d)
        self.gate_proj = normal(n, d, f)
        self.up_proj = normal(n, d, f)
        self.down_proj = normal(n, f, d)


class SDAR(Transformer):
    """An SDAR denoiser.

    Attributes:
      config: its shape.
      embed_tokens: token embeddings [embedding_size, d_model].
      blocks: the stacked transformer blocks.
      norm: weight of the final norm [d_model].
      lm_head: the language-model head [embedding_size, d_model]; None if tied.
    """

    is_block_causal: ClassVar[bool] = True

    def __init__(
        self,
        config: SDARConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.config = config
        self.use_defaults()
        shape = (config.embedding_size, config.d_model)

        def table() -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))

        self.embed_tokens = table()
        self.blocks = Blocks(config, dtype=dtype, rngs=rngs)
        self.norm = nnx.Param(jnp.ones(config.d_model, dtype))
        self.lm_head = None if config.weight_tying else table()

    @property
    def head(self) -> Float[Array, "v d"]:
        """The language-model head, [embedding_size, d_model]."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head)[...]

    def hidden(
        self,
        tokens: Int[Array, "b w"],
        positions: Int[Array, "b w"],
        visibility: Bool[Array, "b #w m"],
        region: Int[Array, "b r"] | None = None,
        model_axis: str | None = None,
        cache: Cache | None = None,
        columns: Int[Array, "b w"] | None = None,
        sees_first: bool = False,
    ) -> tuple[Float[Array, "b r d"], Cache | None]:
        """See `Module.hidden`; model_axis is split over as `partition` says."""
        x = layers.embed(self.embed_tokens[...], tokens, model_axis)
        sin, cos = layers.rotary_angles(
            positions, self.config.head_dim, self.config.rope_theta, x.dtype
        )
        # The released code rotates in the activations' dtype.
        sin, cos = sin.astype(x.dtype), cos.astype(x.dtype)
        attend = self.attend(visibility, sees_first)
        is_apart = self.chosen_way.is_apart

        def block(x: Array, w: stack.Weights, remember: stack.Remember) -> Array:
            return _block(
                x,
                w,
                remember,
                sin=sin,
                cos=cos,
                attend=attend,
                config=self.config,
                model_axis=model_axis,
                is_apart=is_apart,
            )

        x, cache = self.run_blocks(block, x, region, cache, columns)
        return _norm(x, self.norm[...], self.config), cache


def partition(config: SDARConfig, num_parts: int, axis: str) -> dict[str, Any]:
    """How the parameters are split over a mesh axis, for models too big for a device.

    Attention heads, MLP units and the vocabulary are split (arXiv:1909.08053, section
    3). Norms are whole: all heads share the weights of q_norm and k_norm.

    Args:
      config: the shape of the whole model.
      num_parts: devices along the axis.
      axis: its name.

    Returns:
      A `jax.P` for each parameter, as the nested dict of the module's parameters.

    Raises:
      InputError: naming what num_parts does not divide.
    """
    divided = ("n_heads", "n_kv_heads", "mlp_hidden_size", "embedding_size")
    layers.check_parts(config, num_parts, divided)
    by_column = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    whole = ("input_layernorm", "q_norm", "k_norm", "post_attention_layernorm")
    blocks = dict.fromkeys(by_column, jax.P(None, None, axis))
    blocks |= dict.fromkeys(("o_proj", "down_proj"), jax.P(None, axis, None))
    blocks |= dict.fromkeys(whole, jax.P())
    specs = {"embed_tokens": jax.P(axis, None), "blocks": blocks, "norm": jax.P()}
    return specs if config.weight_tying else {**specs, "lm_head": jax.P(axis, None)}


def _block(
    x: Float[Array, "b l d"],
    w: stack.Weights,
    remember: stack.Remember,
    sin: Float[Array, "b l 1 k"],
    cos: Float[Array, "b l 1 k"],
    attend: Attend,
    config: SDARConfig,
    model_axis: str | None,
    is_apart: bool,
) -> Float[Array, "b l d"]:
    """One transformer block. Products run over [b * l, d], as in LLaDA's.

    With a `model_axis`, w holds this device's heads and MLP units, and what they add to
    the residual stream is summed over the axis.
    """
    b, length, d = x.shape
    x = x.reshape(b * length, d)
    h = _norm(x, w["input_layernorm"], config)
    query, key, value = (
        layers.to_heads(one, w[name], config.head_dim).reshape(
            b, length, -1, config.head_dim
        )
        for one, name in zip(layers.apart(h, 3, is_apart), stack.TO_HEADS, strict=True)
    )
    # Each head has its norm, before the rotation.
    query = layers.rotate(_norm(query, w["q_norm"], config), sin, cos)
    key = layers.rotate(_norm(key, w["k_norm"], config), sin, cos)
    keys, values = remember(key, value)
    attended = attend(query, keys, values)
    added = attended.reshape(b * length, -1) @ w["o_proj"]
    x = x + layers.sum_over(model_axis, added)
    h = _norm(x, w["post_attention_layernorm"], config)
    x = x + layers.gated_mlp(
        h,
        gate=w["gate_proj"],
        up=w["up_proj"],
        down=w["down_proj"],
        model_axis=model_axis,
        is_apart=is_apart,
    )
    return x.reshape(b, length, d)


def _norm(
    x: Float[Array, "*n d"], weight: Float[Array, "d"], config: SDARConfig
) -> Float[Array, "*n d"]:
    return layers.rms_norm(x, weight, config.rms_norm_eps, is_rounded_last=True)
