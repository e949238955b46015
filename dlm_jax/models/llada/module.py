"""LLaDA: a bidirectional Llama-style transformer as a Flax NNX module.

Architecture and names follow the released checkpoints (arXiv:2502.09992 and the
`config.json` of GSAI-ML/LLaDA-8B). Position i's logits predict token i: nothing shifts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.models import layers, stack
from dlm_jax.models.llada.config import LLaDAConfig
from dlm_jax.models.stack import Cache
from dlm_jax.models.transformer import Attend, Transformer


class Blocks(nnx.Module):
    """The weights of all transformer blocks, stacked over layers.

    Matrices are [n_layers, in, out]. Stacking lets one traced block serve every layer,
    so compile time does not grow with depth.
    """

    def __init__(
        self, config: LLaDAConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ):
        n, d, f = config.n_layers, config.d_model, config.mlp_hidden_size
        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        # Residual branches start small, so that depth does not change the scale of
        # the residual stream at initialisation.
        residual = 0.02 / (2 * n) ** 0.5

        def normal(*shape: int, std: float = 0.02) -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))

        self.attn_norm = nnx.Param(jnp.ones((n, d), dtype))
        self.q_proj = normal(n, d, q)
        self.k_proj = normal(n, d, kv)
        self.v_proj = normal(n, d, kv)
        self.attn_out = normal(n, q, d, std=residual)
        self.ff_norm = nnx.Param(jnp.ones((n, d), dtype))
        self.ff_proj = normal(n, d, f)
        self.up_proj = normal(n, d, f)
        self.ff_out = normal(n, f, d, std=residual)


class LLaDA(Transformer):
    """A LLaDA denoiser.

    Attributes:
      config: its shape.
      wte: token embeddings [embedding_size, d_model].
      blocks: the stacked transformer blocks.
      ln_f: weight of the final norm [d_model].
      ff_out: the language-model head [embedding_size, d_model]; None if tied to wte.
        Rows are tokens, so that a slice of the vocabulary is contiguous.
    """

    def __init__(
        self,
        config: LLaDAConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.config = config
        self.use_defaults()
        shape = (config.embedding_size, config.d_model)
        self.wte = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        self.blocks = Blocks(config, dtype=dtype, rngs=rngs)
        self.ln_f = nnx.Param(jnp.ones(config.d_model, dtype))
        self.ff_out = (
            None
            if config.weight_tying
            else nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        )

    @property
    def head(self) -> Float[Array, "v d"]:
        """The language-model head, [embedding_size, d_model]."""
        return (self.wte if self.ff_out is None else self.ff_out)[...]

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
        x = layers.embed(self.wte[...], tokens, model_axis)
        sin, cos = layers.rotary_angles(
            positions, self.config.head_dim, self.config.rope_theta, x.dtype
        )
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
        return layers.rms_norm(x, self.ln_f[...], self.config.rms_norm_eps), cache


def partition(config: LLaDAConfig, num_parts: int, axis: str) -> dict[str, Any]:
    """How the parameters are split over a mesh axis, for models too big for a device.

    Attention heads, MLP units and the vocabulary are split, norms are whole
    (arXiv:1909.08053, section 3). A block then needs two sums over the axis.

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
    by_column = ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj")
    whole = ("attn_norm", "ff_norm")
    blocks = dict.fromkeys(by_column, jax.P(None, None, axis))
    blocks |= dict.fromkeys(("attn_out", "ff_out"), jax.P(None, axis, None))
    blocks |= dict.fromkeys(whole, jax.P())
    specs = {"wte": jax.P(axis, None), "blocks": blocks, "ln_f": jax.P()}
    return specs if config.weight_tying else {**specs, "ff_out": jax.P(axis, None)}


def deepen(model: LLaDA) -> LLaDA:
    """A model of twice the depth that computes the same, to be trained on.

    Every block is followed by a copy of it whose two output matrices are zero: it adds
    nothing yet, and sees at once what its original has learned to look at. (Net2Net's
    idea of growth that keeps the function, arXiv:1511.05641.)

    Args:
      model: is not changed.

    Returns:
      A model with 2 * n_layers blocks.
    """
    config = dataclasses.replace(model.config, n_layers=2 * model.config.n_layers)

    def double(name: str, weight: Array) -> Array:
        copy = jnp.zeros_like(weight) if name in ("attn_out", "ff_out") else weight
        both = jnp.stack([weight, copy], axis=1)
        return both.reshape(-1, *weight.shape[1:])

    state = nnx.to_pure_dict(nnx.state(model))
    state["blocks"] = {name: double(name, w) for name, w in state["blocks"].items()}
    graph, abstract = nnx.split(nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(abstract, state)
    return nnx.merge(graph, abstract)


def _block(
    x: Float[Array, "b l d"],
    w: stack.Weights,
    remember: stack.Remember,
    sin: Float[Array, "b l 1 k"],
    cos: Float[Array, "b l 1 k"],
    attend: Attend,
    config: LLaDAConfig,
    model_axis: str | None,
    is_apart: bool,
) -> Float[Array, "b l d"]:
    """One transformer block. Products run over [b * l, d]: faster to train on CPU.

    With a `model_axis`, w holds this device's heads and MLP units, and what they add to
    the residual stream is summed over the axis.
    """
    b, length, d = x.shape
    x = x.reshape(b * length, d)
    h = layers.rms_norm(x, w["attn_norm"], config.rms_norm_eps)
    query, key, value = (
        layers.to_heads(one, w[name], config.head_dim).reshape(
            b, length, -1, config.head_dim
        )
        for one, name in zip(layers.apart(h, 3, is_apart), stack.TO_HEADS, strict=True)
    )
    keys, values = remember(layers.rotate(key, sin, cos), value)
    attended = attend(layers.rotate(query, sin, cos), keys, values)
    added = attended.reshape(b * length, -1) @ w["attn_out"]
    x = x + layers.sum_over(model_axis, added)
    h = layers.rms_norm(x, w["ff_norm"], config.rms_norm_eps)
    x = x + layers.gated_mlp(
        h,
        gate=w["ff_proj"],
        up=w["up_proj"],
        down=w["ff_out"],
        model_axis=model_axis,
        is_apart=is_apart,
    )
    return x.reshape(b, length, d)
